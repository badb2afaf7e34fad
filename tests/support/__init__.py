"""What tests of several packages share: programs that they start, servers, fakes, small inputs."""
