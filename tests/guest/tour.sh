#!/bin/sh
# A short tour of the share, for who starts `make run` without a terminal.
. /mount.sh
echo "guest: exit"
