# What a user relies on, asked on the board itself. One part for each boot; answers are lines "TEST BOOT NAME: VALUE".
. /usr/share/board-test/common.sh

case $boot in
1)
  say "host: $(hostname)"
  say "slot: $(head -n 1 /run/coracle-init/root)"
  say "root: $(grep ' / ' /proc/mounts | tail -n 1 | cut -d ' ' -f 3,4 | cut -c 1-11)"
  say "data: $(df -m /mnt/data | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2)"
  say "memory: $(grep MemTotal /proc/meminfo | tr -s ' ' | cut -d ' ' -f 2) $(grep MemAvailable /proc/meminfo | tr -s ' ' | cut -d ' ' -f 2)"
  say "controllers: $(cat /sys/fs/cgroup/cgroup.subtree_control)"
  say "swap: $(grep -c zram /proc/swaps)"
  say "watchdog: $(cat /sys/class/watchdog/watchdog0/identity 2> /dev/null)"
  say "clock: $(date -u +%Y)"
  until_says there 'coracle exec -p preloaded only echo there'
  say "preloaded: $(coracle exec -p preloaded only echo there)"
  say "preload left: $(ls -A /mnt/data/preload)"
  coracle down -p preloaded > /tmp/out 2>&1 || cat /tmp/out
  until_says 'inet 10\.0\.2\.' 'ip -4 -o addr show'
  say "network: $(ls /sys/class/net | tr '\n' ' ')"
  say "address: $(ip -4 -o addr show | grep -o 'inet 10\.0\.2\.[0-9]*')"
  say "names: $(grep -c '^nameserver ' /etc/resolv.conf)"
  say "pull: $(coracle pull --plain-http 10.0.2.2:5000 10.0.2.2:5000/hello:2 > /tmp/out 2>&1; echo $?)"
  say "import: $(coracle import --name hello:1 hello > /tmp/out 2>&1; echo $?)"
  say "up: $(coracle up -d > /tmp/out 2>&1; echo $?)"
  grep -v done /tmp/out
  until_says three 'coracle exec three hostname'
  say "running: $(coracle ps --json | grep -o '"state":"running"' | wc -l)"
  say "network private: $(for pid in $(cgroup dbus) $(cgroup network); do private $pid; done | awk '{ sum += $1 } END { print sum }')"
  say "private: $(private_of_ours)"
  say "network in services: $(coracle exec one wget -q -O - http://three:8080/ 2>&1)"
  say "limit: $(coracle exec two sh -c 'x=$(yes | head -c 60000000); echo alive' > /tmp/out 2>&1; grep -c alive /tmp/out)"
  say "others: $(coracle exec one echo there) $(coracle exec three echo there)"
  before=$(coracle ps --json | grep -o '"pid":[0-9]*' | sort | tr '\n' ' ')
  kill -9 $(cgroup agent); sleep 1; until_says projects 'coracle status --json'
  say "adopted: $([ "$before" = "$(coracle ps --json | grep -o '"pid":[0-9]*' | sort | tr '\n' ' ')" ] && echo same)"
  kill -9 $(cgroup shim); sleep 1
  say "shim again: $(until_says there 'coracle exec one echo there' && echo yes)"
  # As somebody's editor writes it; it counts from the next boot on.
  printf '[connection]\r\nid=site\r\ntype=wifi\r\n[wifi]\r\nssid=Site\r\n[wifi-security]\r\nkey-mgmt=wpa-psk\r\npsk=goodpass12\r\n' > /mnt/boot/system-connections/site
  coracle exec one sh -c 'echo kept > /kept/file; rm /kept/begun; sync'
  say "stopping: $(up)"
  kill -TERM 1; sleep 1000 ;;
2)
  until [ -e /mnt/data/coracle/volumes/board/kept/_data/begun ]; do sleep 0.1; done
  until_says there 'coracle exec one echo there'
  say "service: $(coracle exec one cat /kept/begun)"
  say "kept: $(coracle exec one cat /kept/file)"
  say "orderly: $(coracle exec one cat /kept/ended)"
  say "replayed: $(dmesg | grep -c 'recovery complete')"
  sleep 10
  begun=$(ticks); sleep 30
  say "idle ticks: $(($(ticks) - begun))"
  before=$(up); for n in 1 2 3 4 5 6 7 8 9 10; do coracle version > /dev/null; done
  say "ten starts of the program: $(echo "$(up) $before" | awk '{ print $1 - $2 }') s"
  before=$(up); for n in 1 2 3 4 5 6 7 8 9 10; do busybox true; done
  say "ten starts of a small program: $(echo "$(up) $before" | awk '{ print $1 - $2 }') s"
  if [ -e radio ]; then
    say "radio before: $(cgroup radio 2> /dev/null)"
    /usr/sbin/modprobe mac80211_hwsim; ip link set wlan1 up; ip addr add 10.43.0.1/24 dev wlan1
    wpa_supplicant -B -i wlan1 -D nl80211 -c $PWD/access-point.conf
    touch /tmp/leases; udhcpd -S udhcpd.conf
    until_says 'inet 10\.43\.0\.' 'ip -4 -o addr show dev wlan0'
    say "radio: $(ip -4 -o addr show dev wlan0 | grep -o 'inet 10\.43\.0\.')"
    say "radio private: $(private $(cgroup radio))"
  fi
  say "modules: $(lsmod | tail -n +2 | cut -d ' ' -f 1 | sort | tr '\n' ' ')"
  dmesg | grep coracle-init | sed "s/^/TIMES /"
  say "end: $(up)"
  kill -TERM 1; sleep 1000 ;;
3)
  until_says there 'coracle exec one echo there'
  # Seconds have 32 bits in many places, which end in 2038; a wrong clock is enough to come there.
  date -u -s 2040.01.01-00:00:00 > /dev/null
  coracle restart one > /tmp/out 2>&1; restarted=$?
  say "after 2038: $restarted $(coracle exec one date -u +%Y) $(coracle ps --json | grep -o '"started":22[0-9]*' | wc -l)"
  coracle down > /tmp/out 2>&1
  export CORACLE_PROGRAM=/usr/bin/coracle CORACLE_ATTACKER=$PWD/attacker TMPDIR=/run/suites
  # With device nodes, which /tmp has not.
  mkdir $TMPDIR; mount -t tmpfs none $TMPDIR
  for suite in $(cat suites); do
    begun=$(up)
    (timeout 900 ./$suite --test-threads 1 --show-output 2>&1; echo $? > /tmp/result) | tee /tmp/out; result=$(cat /tmp/result)
    say "suite $suite: $result"
    say "passed in $suite: $(grep -c '^test .* ok$' /tmp/out) of $(grep -c '^test .* \.\.\. ' /tmp/out), $(echo "$(up) $begun" | awk '{ print $1 - $2 }') s"
    say "skipped in $suite: $(grep -c '^skipped: ' /tmp/out)"
  done
  # Where there is a watchdog that works, the board is on again, and stops feeding it.
  if [ -e watchdog ]; then kill -TERM 1; else kill -USR2 1; fi
  sleep 1000 ;;
4)
  say "watchdog: $(cat /sys/class/watchdog/watchdog0/identity) $(cat /sys/class/watchdog/watchdog0/state)"
  # The first process stands still.
  echo 1 > /sys/fs/cgroup/init/cgroup.freeze
  sleep 120
  say "bitten: no" ;;
esac
