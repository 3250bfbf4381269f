#!/bin/bash
# What an instance runs first: the watchdog, then the launch's key for SSH.
cat >~/watchdog.sh <<'END_OF_WATCHDOG'
{watchdog}
END_OF_WATCHDOG
setsid nohup bash ~/watchdog.sh {seconds} {url} {folder} >~/watchdog.log 2>&1 </dev/null &
touch ~/.no_auto_tmux
mkdir -p ~/.ssh && chmod 700 ~/.ssh
echo '{public_key}' >>~/.ssh/authorized_keys
chmod 600 ~/.ssh/authorized_keys
