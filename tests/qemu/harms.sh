# What is wrong with a board; with `test=renew` another program takes the place of agent and shim. With `test=whole` the boot of one that is right; with `test=fill` the end of its room; with
# `test=harm` the boot of one that is harmed.
. /usr/share/board-test/common.sh
service() { coracle exec -p preloaded only "$@" 2>&1; }
comes_up() { n=0; until service echo there | grep -q there; do n=$((n + 1)); [ $n -gt $1 ] && return 1; sleep 0.5; done; }
case "$(cat /proc/cmdline)" in
*test=whole*)
  comes_up 240
  say "service: $(service sh -c 'echo kept > /kept/file; echo there')"
  say "hostname: $(hostname)"
  kill -USR2 1; sleep 1000 ;;
*test=fill*)
  comes_up 240
  dd if=/dev/zero of=/mnt/data/filler bs=1M 2> /dev/null
  dd if=/dev/zero of=/mnt/data/filler2 bs=4k 2> /dev/null
  sync
  say "filled: $(df -k /mnt/data | tail -n 1 | tr -s ' ' | cut -d ' ' -f 4)"
  kill -USR2 1; sleep 1000 ;;
*test=break*)
  comes_up 240
  # It has always something to do, which makes an hour long.
  coracle stop -p preloaded talker > /tmp/out 2>&1
  disk=$(grep ' /mnt/data ' /proc/mounts | cut -d ' ' -f 1)
  echo 1 > /sys/fs/ext4/${disk##*/}/trigger_fs_error
  # Mounts are shown as before, from Linux 6.12 on.
  say "data now: $(touch /mnt/data/x 2> /dev/null && echo rw || echo ro)"
  for n in $(seq 60); do sleep 30; say "still there: $(up)"; done
  say "rebooted: no"
  kill -USR2 1; sleep 1000 ;;
*test=renew*)
  comes_up 240
  pids() { coracle ps -p preloaded --json | grep -o '"pid":[0-9][0-9]*' | tr '\n' ' '; }
  is() { cmp -s /proc/$(cgroup $1)/exe $2 && echo yes; }
  released=/mnt/data/coracle/program/coracle
  before=$(pids); shim=$(cgroup shim)
  cp /usr/bin/coracle /mnt/data/new; echo >> /mnt/data/new
  say "renew: $(coracle self-update /mnt/data/new > /tmp/out 2>&1; echo $?)"
  cat /tmp/out
  say "agent is it: $(is agent $released)"
  say "shim is it: $(is shim $released)"
  say "shim is the same process: $([ "$shim" = "$(cgroup shim)" ] && echo yes)"
  say "services are the same processes: $([ "$before" = "$(pids)" ] && echo yes)"
  sleep 2
  say "log: $(coracle logs -p preloaded --no-log-prefix talker | awk '$2 != NR { bad = 1 } END { print (bad || NR < 5) ? "broken at " NR : "whole" }')"
  say "exec: $(service echo there)"
  kill -9 $(coracle ps -p preloaded --json | grep -o '"talker":{[^}]*' | grep -o '"pid":[0-9]*' | cut -d : -f 2)
  until_says '"code":137' 'coracle ps -p preloaded --json'
  say "end: $(coracle ps -p preloaded --json | grep -o '"code":137' | head -n 1)"
  until [ "$(pids | wc -w)" = 2 ]; do sleep 0.2; done
  before=$(pids)
  printf '#!/usr/bin/busybox sh\n[ "$1" = version ] && echo coracle 9 && exit 0\nexit 7\n' > /mnt/data/bad
  say "bad: $(coracle self-update /mnt/data/bad > /tmp/out 2>&1; echo $?)"
  cat /tmp/out
  until_says projects 'coracle status'
  say "told: $(coracle status | grep -o '"lacks":\[[^]]*\]')"
  say "agent is its own: $(is agent /usr/bin/coracle)"
  say "shim is its own: $(is shim /usr/bin/coracle)"
  say "put aside: $(ls /mnt/data/coracle/program | tr '\n' ' ')"
  say "services go on: $([ "$before" = "$(pids)" ] && echo yes)"
  say "text: $(coracle self-update /etc/hosts > /tmp/out 2>&1; echo $?)"
  say "own: $(coracle self-update --own > /tmp/out 2>&1; echo $?)"
  kill -USR2 1; sleep 1000 ;;
esac
say "hostname: $(hostname)"
say "slot: $(head -n 1 /run/coracle-init/root)"
say "state: $(grep ' /mnt/state ' /proc/mounts | tail -n 1 | cut -d ' ' -f 3)"
say "data: $(grep ' /mnt/data ' /proc/mounts | tail -n 1 | cut -d ' ' -f 3)"
say "year: $(date -u +%Y)"
say "told: $(coracle status | grep -o '"lacks":\[[^]]*\]')"
if grep -q test=harm-short /proc/cmdline; then comes_up 20; else comes_up 120; fi
say "service: $(service echo there)"
say "kept: $(service cat /kept/file)"
say "failures: $(coracle status | grep -o '"failures":\[[^]]*\]')"
say "pull: $(coracle pull --plain-http 10.0.2.2:5000 10.0.2.2:5000/hello:2 2>&1 | tail -n 1)"
if [ -e /mnt/data/filler ]; then
  rm /mnt/data/filler*
  comes_up 240
  say "service with room: $(service echo there)"
  until_says 'inet 10\.0\.2\.' 'ip -4 -o addr show'
  say "pull with room: $(coracle pull --plain-http 10.0.2.2:5000 10.0.2.2:5000/hello:2 > /tmp/out 2>&1; echo $?)"
fi
say "end: $(up)"
kill -USR2 1; sleep 1000
