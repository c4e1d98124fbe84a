# What a power cut leaves. With `test=record` a boot in which every write is recorded, with marks between its stages;
# with `test=cut` the boot after a cut.
. /usr/share/board-test/common.sh
running() { coracle ps --json | grep -o '"state":"[a-z]*"' | grep -c running; }
settle() { for n in $(seq 150); do [ "$(running)" = 2 ] && return; sleep 0.2; done; say "waits: $(coracle ps --json)"; }
digest() { (cd $1 && find . | sort | while read -r file; do stat -c '%n %a %u %g %h' "$file"; [ -f "$file" ] && sha256sum < "$file"; done) | sha256sum | cut -c 1-16; }
layers() { for layer in /mnt/data/coracle/images/layers/*; do [ -d $layer ] && echo "$(basename $layer)=$(digest $layer)"; done | sort | tr '\n' ' '; }
volume() { digest /mnt/data/coracle/volumes/cuts/kept/_data; }
up_to() { REGISTRY=10.0.2.2:5000 RELEASE=$1 coracle up -d --plain-http 10.0.2.2:5000 -f cuts.yaml; }
# Between the table of partitions, or a loader, and the first of them.
disk=$(grep ' /mnt/data ' /proc/mounts | cut -d ' ' -f 1 | sed -E 's/p?[0-9]+$//')
mark() { printf '%-511s\n' "coracle-stage $1" | dd of=$disk bs=512 seek=2040 conv=notrunc,fsync 2> /dev/null; }
until_says 'inet 10\.0\.2\.' 'ip -4 -o addr show'
if grep -q test=record /proc/cmdline; then
  mark pull
  for image in one:1 two:1; do coracle pull --plain-http 10.0.2.2:5000 10.0.2.2:5000/$image > /tmp/out 2>&1 || cat /tmp/out; done
  mark start
  up_to 1 > /tmp/out 2>&1 || cat /tmp/out
  settle; sleep 2
  mark update
  up_to 2 > /tmp/out 2>&1 || cat /tmp/out
  settle; sleep 2
  say "layers: $(layers)"
  say "volume: $(volume)"
  mark shutdown
  kill -TERM 1; sleep 1000
fi
say "found: $(layers)"
case "$(coracle ps --json)" in
  *one*) settle; say "target: $(coracle exec one env | grep RELEASE)" ;;
  *) say "target: none" ;;
esac
up_to 2 > /tmp/out 2>&1 || cat /tmp/out
settle
say "after: $(coracle exec one env | grep RELEASE)"
say "volume: $(volume)"
for n in $(seq 100); do [ $(ls /mnt/data/coracle/images/images | wc -l) = 2 ] && break; sleep 0.2; done
say "layers: $(layers)"
say "broken: $(dmesg | grep -c 'ERROR\|panicked\|is broken\|EXT4-fs error')"
say "size: $(df -m /mnt/data | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2)"
kill -USR2 1; sleep 1000
