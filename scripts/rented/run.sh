#!/bin/bash
# On the rented host, in tmux: the set-up, then the recipe. Writing exit_code is its last act.
cd "$(dirname "$0")" || exit 1
finish() {
  echo "$*" >exit_code.partial
  mv exit_code.partial exit_code
  exit
}
bash setup.sh || finish setup $?
bash train.sh &
echo $! >train.pid
wait $!
finish train $?
