"""Lists what `ray job submit --working-dir DIR` uploads, and checks it against Ray's limit.

python -m pharmclf.distributed.job_upload [DIR]                            list; exit code 2 if it is too large
export RAY_JOB_SUBMIT_HOOK=pharmclf.distributed.job_upload.before_submit   `ray job submit` checks
before it uploads
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pharmclf.core.compat.ray import runtime_env_of_submission, upload_limit, uploaded_paths
from pharmclf.core.errors import ConfigError
from pharmclf.core.program import run_job
from pharmclf.core.tables import align_columns
from pharmclf.core.units import format_size

_ENTRY_BYTES, _END_BYTES = 76, 22
"""Of an uncompressed ZIP archive: the two headers of a file, without its name, and the end."""
_SHOWN = 8


def list_uploaded_files(folder: Path, excludes: Sequence[str] = ()) -> dict[str, int]:
    """The files that Ray uploads from a folder, and their sizes in bytes.

    Args:
        folder: the working directory; its .gitignore and .rayignore count, and those of the folders in it.
        excludes: patterns of the runtime environment's `excludes`.
    """
    folder = folder.absolute()
    paths = uploaded_paths(folder, excludes)
    return {str(path.relative_to(folder)): path.stat().st_size for path in paths if path.is_file()}


def upload_bytes(files: dict[str, int]) -> int:
    """Size of the archive that Ray makes of files."""
    return sum(size + _ENTRY_BYTES + 2 * len(name.encode()) for name, size in files.items()) + _END_BYTES


def largest_entries(files: dict[str, int]) -> list[tuple[str, int]]:
    """The largest top-level folders and files of an upload with their sizes, largest first."""
    sizes: Counter[str] = Counter()
    for name, size in files.items():
        top, _, below = name.partition("/")
        sizes[f"{top}/" if below else top] += size
    return sizes.most_common(_SHOWN)


def check_upload(folder: Path, files: dict[str, int]) -> None:
    """Compare an upload with Ray's limit.

    Raises:
        ConfigError: it is too large; the message names its largest parts and files.
    """
    size, limit = upload_bytes(files), upload_limit()
    if size < limit:
        return
    parts = ", ".join(f"{name} {format_size(size)}" for name, size in largest_entries(files))
    single = ", ".join(f"{name} {format_size(size)}" for name, size in Counter(files).most_common(3))
    raise ConfigError(
        f"--working-dir {folder}: received {len(files):,} files of {format_size(size)}, expected less than Ray's limit "
        f"of {format_size(limit)}. Large are {parts}; its largest files are {single}. Data, results and environments "
        "need no upload: name them in .rayignore, and give --data and --storage a shared folder or s3://"
    )


def before_submit(*, working_dir: str | None, runtime_env: str | None, runtime_env_json: str | None, **_: Any) -> None:
    """Hook of RAY_JOB_SUBMIT_HOOK: ends `ray job submit` with exit code 2 if its upload is too large.

    Args:
        working_dir: of `ray job submit`.
        runtime_env: the path of a YAML file.
        runtime_env_json: the same as text.
    """
    environment = runtime_env_of_submission(runtime_env, runtime_env_json, working_dir)
    folder = Path(environment.get("working_dir") or "")
    if environment.get("working_dir") and folder.is_dir():  # else an archive or a URI
        try:
            check_upload(folder, list_uploaded_files(folder, environment.get("excludes") or ()))
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)  # noqa: T201
            sys.exit(2)


def main() -> int:
    """List what Ray uploads from the folder on the command line."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    if not folder.is_dir():
        raise ConfigError(f"received {str(folder)!r}, expected the folder that is given as --working-dir")
    files = list_uploaded_files(folder)
    check_upload(folder, files)
    for line in align_columns([(format_size(size), name) for name, size in largest_entries(files)], left=[1]):
        print(line)  # noqa: T201
    print(  # noqa: T201
        f"{len(files):,} files of {format_size(upload_bytes(files))} would be uploaded; "
        f"Ray's limit is {format_size(upload_limit())}"
    )
    return 0


if __name__ == "__main__":
    run_job(main)
