#!/bin/bash
# Ends this instance SECONDS after its first start, whoever sleeps at home. Vast gives each
# instance a key of its own in CONTAINER_API_KEY, with which it may stop or destroy itself.
# usage: watchdog.sh SECONDS URL FOLDER [PAUSE]
url=$2 folder=$3 pause=${4:-30}
mkdir -p "$folder"
# A restart of the container buys no time.
[ -s "$folder/end" ] || echo $(($(date +%s) + $1)) >"$folder/end"
end=$(cat "$folder/end")
# Seconds for a last checkpoint; the launcher, if it is awake, has asked for one before.
notice=$(($1 < 720 ? $1 / 6 : 120))
for name in CONTAINER_ID CONTAINER_API_KEY; do
  [ -n "${!name}" ] || export "$name=$(tr '\0' '\n' </proc/1/environ | sed -n "s/^$name=//p")"
done
# Again and again, since another apt-get may hold the lock; aside, so that it delays no end.
until command -v curl || command -v python3; do
  apt-get update && apt-get install -y curl ca-certificates
  sleep 5
done &
# The key goes in by stdin or the environment, so that no list of processes shows it. Vast can
# also refuse with 200.
ask() {
  local to="$url/api/v0/instances/$CONTAINER_ID/" said
  if command -v curl >/dev/null; then
    said=$(printf 'header = "Authorization: Bearer %s"\n' "$CONTAINER_API_KEY" |
      curl -sSf -m 60 -K - -X "$1" -H 'Content-Type: application/json' -d "$2" "$to") || return 1
  else
    said=$(python3 -c 'import os, sys, urllib.request as u
print(u.urlopen(u.Request(sys.argv[3], sys.argv[2].encode(), {"Content-Type": "application/json",
"Authorization": "Bearer " + os.environ["CONTAINER_API_KEY"]}, method=sys.argv[1]),
timeout=60).read().decode())' "$1" "$2" "$to") || return 1
  fi
  echo "$1: $said"
  ! [[ $said =~ \"success\":\ *false ]]
}
asked=
while now=$(date +%s) && [ "$now" -lt "$end" ]; do
  if [ -z "$asked" ] && [ $((end - now)) -le $notice ] && [ -s "$folder/train.pid" ]; then
    kill -TERM "$(cat "$folder/train.pid")"
    asked=1
  fi
  sleep $((end - now < 20 ? 1 : 5))
done
while :; do
  ask DELETE '{}' || ask PUT '{"state": "stopped"}'
  sleep "$pause"
done
