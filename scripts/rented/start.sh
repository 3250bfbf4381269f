#!/bin/bash
# Starts run.sh in tmux on the rented host; a second start does nothing.
cd "$(dirname "$0")" || exit 1
command -v tmux >/dev/null || bash install.sh tmux >/dev/null 2>&1
command -v tmux || { echo 'tmux cannot be installed' >&2; exit 1; }
[ -e started ] || tmux new-session -d -s judge 'bash run.sh >run.log 2>&1' || exit 1
touch started
