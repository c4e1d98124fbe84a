# Figures of a board: a release of two services on its card, then five services without work.
. /usr/share/board-test/common.sh
case $boot in
1)
  until_says 'inet 10\.0\.2\.' 'ip -4 -o addr show'
  say "up: $(REGISTRY=10.0.2.2:5000 coracle up -d --plain-http 10.0.2.2:5000 -f demo.yaml > /tmp/out 2>&1; echo $?)"
  grep -v done /tmp/out
  until_says 'The clock says' 'wget -q -O - http://127.0.0.1:8080/'
  say "page: $(wget -q -O - http://127.0.0.1:8080/ | cut -d : -f 1)"
  sync; sleep 5
  kill -TERM 1; sleep 1000 ;;
2)
  until_says 'started container=demo-' dmesg
  # The kernel's own time, when the agent was told that the service runs.
  say "service: $(dmesg | grep 'started container=demo-' | head -n 1 | sed 's/^\[ *\([0-9.]*\)\].*/\1/')"
  until_says 'The clock says' 'wget -q -O - http://127.0.0.1:8080/'
  say "answers: $(up)"
  sleep 20
  say "private with the release: $(private_of_ours)"
  say "up: $(coracle up -d -f idle.yaml > /tmp/out 2>&1; echo $?)"
  grep -v done /tmp/out
  coracle down -p demo > /tmp/out 2>&1
  say "running: $(coracle ps --json | grep -o '"state":"running"' | wc -l)"
  sleep 40
  say "private: $(private_of_ours)"
  say "network private: $(for pid in $(cgroup dbus) $(cgroup network); do private $pid; done | awk '{ sum += $1 } END { print sum }')"
  say "available: $(grep MemAvailable /proc/meminfo | tr -s ' ' | cut -d ' ' -f 2)"
  begun=$(ticks); sleep 60
  say "idle ticks: $(($(ticks) - begun))"
  kill -USR2 1; sleep 1000 ;;
3)
  # With less memory.
  coracle down -p idle > /tmp/out 2>&1
  say "up: $(REGISTRY=10.0.2.2:5000 coracle up -d --plain-http 10.0.2.2:5000 -f demo.yaml > /tmp/out 2>&1; echo $?)"
  grep -v done /tmp/out
  until_says 'The clock says' 'wget -q -O - http://127.0.0.1:8080/'
  until_says 'inet 10\.0\.2\.' 'ip -4 -o addr show'
  say "page: $(wget -q -O - http://127.0.0.1:8080/ | cut -d : -f 1)"
  say "address: $(ip -4 -o addr show | grep -o 'inet 10\.0\.2\.[0-9]*')"
  say "running: $(coracle ps --json | grep -o '"state":"running"' | wc -l)"
  say "killed: $(dmesg | grep -c 'Out of memory')"
  sleep 10
  say "memory: $(grep MemTotal /proc/meminfo | tr -s ' ' | cut -d ' ' -f 2) $(grep MemAvailable /proc/meminfo | tr -s ' ' | cut -d ' ' -f 2)"
  kill -USR2 1; sleep 1000 ;;
esac
