#!/usr/bin/env bash
# What cargo needs beside itself, a linker and the C library to link with, and what is named:
# tools.sh [COMMAND PACKAGE]...
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/guest/packages.sh
. "$here/packages.sh"
need cc gcc cc libc6-dev "$@"
