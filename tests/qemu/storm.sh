# Services and programs that end again and again, ten a second in all, for an hour; one service that goes on.
. /usr/share/board-test/common.sh
coracle import --name hello:1 hello > /tmp/out 2>&1 || cat /tmp/out
coracle up -d -f storm.yaml > /tmp/out 2>&1
until_says '[0-9]' 'coracle exec -p storm steady cat /kept/count'
count() { coracle exec -p storm steady cat /kept/count; }
pid() { coracle ps -p storm --json | grep -o '"steady":{[^}]*' | grep -o '"pid":[0-9]*'; }
zombies() { grep -l '^State:.Z' /proc/[0-9]*/status 2> /dev/null | wc -l; }
forks() { grep '^processes' /proc/stat | cut -d ' ' -f 2; }
look() {
  sleep 1
  say "$1: $(private 1) $(private $(cgroup shim)) $(private $(cgroup agent)) KiB, $(zombies) zombies, $(forks) forks, steady $(count), up $(up)"
}
first=$(pid)
look "minute 0"
minute=0
while [ $minute -lt 60 ]; do
  minute=$((minute + 1))
  end=$(($(cut -d . -f 1 /proc/uptime) + 60))
  while [ $(cut -d . -f 1 /proc/uptime) -lt $end ]; do
    # Nobody waits for these but the first process.
    for n in 1 2 3 4 5 6 7 8; do (busybox sh -c 'exit 3' &); done
    sleep 1
  done
  case $minute in 5 | 30 | 60) look "minute $minute" ;; *) say "minute $minute: $(up)" ;; esac
done
say "steady is the same: $([ "$first" = "$(pid)" ] && echo yes)"
say "restarts: $(coracle ps -p storm --json | grep -o '"restarts":[0-9]*' | tr '\n' ' ')"
say "answers: $(coracle exec -p storm steady echo there)"
say "safe: $(dmesg | grep -c 'safe mode')"
say "end: $(up)"
kill -USR2 1; sleep 1000
