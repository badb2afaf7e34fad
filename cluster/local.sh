#!/usr/bin/env bash
# A Ray head on this machine only, with token authentication, to submit jobs to. The job server is bound to 127.0.0.1.
# Ray's GCS and raylet always listen on all addresses, and answer no request without the token.
#
# Costs      nothing beyond this machine.
# Start      cluster/local.sh start
# Submit     cluster/local.sh submit -- python jobs/train.py --num-workers 1 --storage "$PWD/runs" --name demo
# Watch      cluster/local.sh status;  cluster/local.sh logs JOB;  http://127.0.0.1:8265 (requires the token)
# Fetch      pharmclf fetch-best --storage runs --out best/
# Tear down  cluster/local.sh halt JOB     ends one job; its run writes a checkpoint first
#            cluster/local.sh stop         ends this Ray and its jobs; other Rays on the machine continue
#
# The token is in ~/.ray/auth_token, readable by your user only, and is created if it does not exist; RAY_AUTH_TOKEN and
# RAY_AUTH_TOKEN_PATH override it. Ports and folder: PHARMCLF_RAY_PORT (6379), PHARMCLF_DASHBOARD_PORT (8265),
# PHARMCLF_RAY_DIR (/tmp/ray-pharmclf-UID: Ray's logs and spilled objects). CPUs and GPUs are those of the machine.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
# Ray finds the `python` of a submitted job on the PATH that it was started with
[ -x "$root/.venv/bin/ray" ] && PATH="$root/.venv/bin:$PATH"

gcs_port=${PHARMCLF_RAY_PORT:-6379}
dashboard_port=${PHARMCLF_DASHBOARD_PORT:-8265}
folder=${PHARMCLF_RAY_DIR:-/tmp/ray-pharmclf-$(id -u)}
address=http://127.0.0.1:$dashboard_port
pid_file=$folder/head.pid
timeout_s=180

export RAY_AUTH_MODE=token PATH
# a node that does not answer is considered lost after 3 x (3 + 1) seconds
export RAY_health_check_initial_delay_ms=5000 RAY_health_check_period_ms=1000
export RAY_health_check_timeout_ms=3000 RAY_health_check_failure_threshold=3
unset RAY_ADDRESS RAY_API_SERVER_ADDRESS
# the job server is on this machine: without this, `ray job` would use a proxy
no_proxy=${no_proxy:-${NO_PROXY:-}}
[ "$no_proxy" = "*" ] || no_proxy=${no_proxy:+$no_proxy,}localhost,127.0.0.1
export no_proxy NO_PROXY="$no_proxy"

fail() {
  echo "local.sh: $*" >&2
  exit 1
}

alive() {
  # another process may have got the id: it must be the one that was started for this folder
  [ -f "$pid_file" ] && tr '\0' ' ' <"/proc/$(cat "$pid_file")/cmdline" 2>/dev/null | grep -qF -- "--temp-dir=$folder"
}

make_token() {
  [ -n "${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-}" ] && return
  # --generate keeps an existing token
  (umask 077 && ray get-auth-token --generate) >/dev/null 2>&1 || fail "cannot create a token in ~/.ray/auth_token"
  chmod 600 ~/.ray/auth_token
}

start() {
  alive && fail "already running (process $(cat "$pid_file")): $0 stop ends it"
  make_token
  (umask 077 && mkdir -p "$folder")
  setsid nohup ray start --head --block --node-ip-address=127.0.0.1 --port="$gcs_port" \
    --dashboard-host=127.0.0.1 --dashboard-port="$dashboard_port" --dashboard-agent-listen-port=0 \
    --temp-dir="$folder" --disable-usage-stats "$@" </dev/null >"$folder/head.log" 2>&1 &
  echo $! >"$pid_file"
  local end=$((SECONDS + timeout_s))
  until ray job list --address "$address" >/dev/null 2>&1; do
    alive || { tail -n 20 "$folder/head.log" >&2; fail "Ray ended; its log: $folder/head.log"; }
    [ "$SECONDS" -lt "$end" ] || fail "Ray accepts no jobs after $timeout_s s; its log: $folder/head.log"
    sleep 1
  done
  echo "Ray accepts jobs at $address, with the token that \`ray get-auth-token\` prints"
}

stop() {
  alive || { echo "not running"; return; }
  local pid
  pid=$(cat "$pid_file")
  kill -TERM "$pid"
  local end=$((SECONDS + 60))
  while kill -0 "$pid" 2>/dev/null; do
    [ "$SECONDS" -lt "$end" ] || { kill -KILL "$pid"; break; }
    sleep 0.5
  done
  rm -f "$pid_file"
  echo "stopped"
}

command=${1:-help}
[ $# -gt 0 ] && shift
case $command in
  start) start "$@" ;;
  stop) stop ;;
  status)
    alive || fail "not running: $0 start"
    ray status --address "127.0.0.1:$gcs_port"
    ray job list --address "$address"
    ;;
  submit)
    cd "$root"
    exec ray job submit --address "$address" --working-dir . --runtime-env jobs/runtime-env.yaml "$@"
    ;;
  logs) exec ray job logs --address "$address" --follow "$@" ;;
  halt) exec ray job stop --address "$address" "$@" ;;
  *)
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
    [ "$command" = help ] || exit 2
    ;;
esac
