#!/usr/bin/env bash
# A SLURM of one node on this machine, for tests and for trying the job script: as root, from
# Debian's packages slurm-wlm and munge. Everything it writes lies in FOLDER; /etc is not touched.
#
#   scripts/slurm/one_node.sh start FOLDER     then: export SLURM_CONF=FOLDER/slurm.conf
#   scripts/slurm/one_node.sh stop FOLDER
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 2
}

start() {
  [ "$(id -u)" = 0 ] || fail "SLURM's node daemon runs as root: start it as root"
  for program in munged slurmctld slurmd; do
    command -v "$program" >/dev/null || fail "no $program here: apt-get install slurm-wlm munge"
  done
  mkdir -p "$folder"/{state,spool}
  chmod 755 "$folder"
  # Each cluster has a key, a socket and ports of its own, so that two do not meet.
  [ -e "$folder/munge.key" ] || mungekey --create --keyfile "$folder/munge.key"
  # --force: its socket may lie below a folder that others may not enter, as pytest makes them.
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
    --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
  write_configuration >"$folder/slurm.conf"
  printf '#!/bin/sh\necho "$@" >>"%s"\n' "$folder/mail.log" >"$folder/mail.sh"
  chmod +x "$folder/mail.sh"
  export SLURM_CONF="$folder/slurm.conf"
  slurmctld -c
  slurmd -c
  for _ in $(seq 360); do
    if [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ]; then
      return
    fi
    sleep 0.5
  done
  stop
  fail "the node did not become idle: $folder/slurmctld.log and $folder/slurmd.log say why"
}

write_configuration() {
  local host ports
  host=$(hostname -s)
  read -r -a ports < <(python3 -c '
import random, socket
taken = []
while len(taken) < 2:  # below the ports that the system hands out: nobody gets them in between
    try:
        taken.append(socket.create_server(("127.0.0.1", random.randrange(20000, 30000))))
    except OSError:
        pass
print(*(one.getsockname()[1] for one in taken))')
  # --all: nproc alone answers with OMP_NUM_THREADS where that is set.
  # Without control groups, which a container may not have. A requeued job waits until its
  # credential has expired, 2 minutes by default; KillWait lies between SIGTERM and SIGKILL.
  cat <<CONFIGURATION
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmdPort=${ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=15
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2
KillWait=10
MessageTimeout=60
MailProg=$folder/mail.sh
MpiDefault=none
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc --all) State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONFIGURATION
}

stop() {
  local daemon pid
  SLURM_CONF="$folder/slurm.conf" timeout 20 scancel --full --signal=KILL --user=root || true
  for daemon in slurmd slurmctld munged; do
    pid=$(cat "$folder/$daemon.pid" 2>/dev/null) || continue
    kill "$pid" 2>/dev/null || continue
    timeout 20 tail --pid="$pid" -f /dev/null || kill -KILL "$pid"
  done
}

[ $# = 2 ] || fail "usage: $0 start|stop FOLDER"
mkdir -p "$2"
folder=$(cd "$2" && pwd)
case $1 in
  start) start ;;
  stop) stop ;;
  *) fail "usage: $0 start|stop FOLDER" ;;
esac
