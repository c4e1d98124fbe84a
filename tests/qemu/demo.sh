# The demo's release, on a board.
. /usr/share/board-test/common.sh
until_says 'inet 10\.0\.2\.' 'ip -4 -o addr show'
cd /usr/share/board-test
export REGISTRY=10.0.2.2:5000
if grep -q 'demo=once' /proc/cmdline; then
  say "up: $(coracle up -d --plain-http $REGISTRY -f demo.yaml > /tmp/out 2>&1; echo $?)"
  cat /tmp/out
  until_says 'The clock says' 'wget -q -O - http://127.0.0.1:8080/'
  say "page: $(wget -q -O - http://127.0.0.1:8080/)"
  say "clock: $(coracle exec page /usr/local/bin/hello ask clock:80)"
  until_says '"health":"healthy"' 'coracle ps --json'
  say "health: $(coracle ps --json | grep -o '"health":"[a-z]*"')"
  say "log: $(coracle logs clock | grep -c 'GET / HTTP/1.0')"
  coracle ps; coracle df
  say "down: $(coracle down -v > /tmp/out 2>&1; echo $?)"
  say "left: $(ip -o link | grep -c cor-)"
  kill -USR2 1; sleep 1000
fi
coracle up -d --plain-http $REGISTRY -f demo.yaml
coracle ps
echo
echo "This is the board's console. Try: coracle ps; coracle logs -f; coracle stats; wget -q -O - http://127.0.0.1:8080/"
echo "poweroff: kill -USR2 1"
exec setsid cttyhack sh < /dev/console
