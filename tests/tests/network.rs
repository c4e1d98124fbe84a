//! Networks of a project, in the kernel.

use anyhow::{Context, ensure};
use coracle_tests::board::{Board, http, run, wait_for};
use coracle_tests::needs;
use std::process::Command;
use std::time::Duration;

fn up(board: &Board, text: &str) -> anyhow::Result<()> {
    let app = "image: 127.0.0.1:5000/app:1, stop_grace_period: 0s";
    let serve = "command: sh -c 'mkdir -p /www; hostname > /www/index.html; exec httpd -f -p 80 -h /www'";
    board.compose(&text.replace("APP", app).replace("SERVE", serve))?;
    board.coracle(&["up", "-d"]).map(drop)
}

fn inside(board: &Board, service: &str, line: &str) -> anyhow::Result<String> {
    let output = board.output(&["exec", service, "sh", "-c", line])?;
    Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

macro_rules! needs_all {
    () => {
        needs!("docker-registry", "skopeo", "nft", "busybox", "ip")
    };
}

/// Another host on the board's uplink: the board is 192.0.2.1, it is 192.0.2.9.
struct Neighbour(std::process::Child);

impl Neighbour {
    fn new() -> anyhow::Result<Self> {
        let host =
            Self(Command::new("unshare").args(["-n", "sleep", "60"]).stdout(std::process::Stdio::null()).spawn()?);
        let pid = host.0.id().to_string();
        // The namespace is there once the program is another than ours.
        wait_for("the neighbour", || Ok(std::fs::read_to_string(format!("/proc/{pid}/comm"))?.trim() == "sleep"))?;
        run(Command::new("ip").args(["link", "add", "up0", "type", "veth", "peer", "name", "out0"]))?;
        run(Command::new("ip").args(["addr", "add", "192.0.2.1/24", "dev", "up0"]))?;
        run(Command::new("ip").args(["link", "set", "up0", "up"]))?;
        run(Command::new("ip").args(["link", "set", "out0", "netns", &pid]))?;
        host.run(&["ip", "addr", "add", "192.0.2.9/24", "dev", "out0"])?;
        host.run(&["ip", "link", "set", "out0", "up"])?;
        Ok(host)
    }

    fn run(&self, words: &[&str]) -> anyhow::Result<String> {
        run(Command::new("nsenter").args(["-t", &self.0.id().to_string(), "-n"]).args(words))
    }

    /// Sends datagrams to the board from one source port, five a second.
    fn send_datagrams(&self, count: usize) -> std::thread::JoinHandle<anyhow::Result<()>> {
        let namespace = format!("/proc/{}/ns/net", self.0.id());
        std::thread::spawn(move || {
            let namespace = std::fs::File::open(namespace)?;
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
            let socket = std::net::UdpSocket::bind("192.0.2.9:4000")?;
            for _ in 0..count {
                // Refused while nobody listens: told on the next send.
                let _ = socket.send_to(b"word\n", "192.0.2.1:5514");
                std::thread::sleep(std::time::Duration::from_millis(200));
            }
            Ok(())
        })
    }

    fn fetch(&self, url: &str) -> anyhow::Result<String> {
        self.run(&["timeout", "3", "busybox", "wget", "-qO-", url])
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// E5
#[test]
fn a_published_port_answers_from_everywhere_it_should() -> anyhow::Result<()> {
    needs_all!();
    let board = Board::with_app()?;
    up(
        &board,
        r#"
services:
  web: {APP, SERVE, ports: ["8080:80", "127.0.0.1:8081:80", "9000-9001:80-81"], networks: [a, b]}
  peer: {APP, command: sleep 1000, networks: [a]}
  alien: {APP, command: sleep 1000, networks: [c]}
networks: {a: {}, b: {}, c: {}}
"#,
    )?;
    let outside = Neighbour::new()?;
    wait_for("127.0.0.1", || Ok(http("127.0.0.1:8080", "/")?.contains("web")))?;
    ensure!(http("192.0.2.1:8080", "/")?.contains("web"));
    ensure!(http("127.0.0.1:8081", "/")?.contains("web"));
    ensure!(http("127.0.0.1:9000", "/")?.contains("web"));
    ensure!(http("192.0.2.1:8081", "/").is_err(), "published on 127.0.0.1 alone");
    ensure!(outside.fetch("http://192.0.2.1:8080/")?.contains("web"));
    ensure!(outside.fetch("http://192.0.2.1:8081/").is_err(), "published on 127.0.0.1 alone");
    for service in ["web", "peer", "alien"] {
        let answer = inside(&board, service, "timeout 3 wget -qO- http://192.0.2.1:8080/")?;
        ensure!(answer.contains("web"), "{service}: {answer}");
    }
    let alien = inside(&board, "alien", "timeout 2 wget -qO- http://web/ || echo no")?;
    ensure!(alien.contains("no"), "networks are apart: {alien}");
    let address = board.service("web")?["addresses"]["a"].as_str().unwrap_or_default().to_owned();
    let alien = inside(&board, "alien", &format!("timeout 2 wget -qO- http://{address}/ || echo no"))?;
    ensure!(alien.contains("no"), "networks are apart by address too: {alien}");
    Ok(())
}

// E2
#[test]
fn names_of_services_are_answered_for_every_type() -> anyhow::Result<()> {
    needs_all!();
    let board = Board::with_app()?;
    up(
        &board,
        r#"
services:
  db: {APP, command: sleep 1000, networks: {default: {aliases: [Cache]}}}
  web: {APP, command: sleep 1000}
"#,
    )?;
    let address = board.service("db")?["addresses"]["default"].as_str().unwrap_or_default().to_owned();
    for name in ["db", "DB", "cache"] {
        let answer = inside(&board, "web", &format!("nslookup {name}"))?;
        ensure!(answer.contains(&address), "{name}: {answer}");
    }
    let range = inside(&board, "web", "cat /proc/sys/net/ipv4/ping_group_range")?;
    assert_eq!(range.trim(), "0\t2147483647", "everybody may ping");
    let answer = inside(&board, "web", "nslookup -type=aaaa db")?;
    ensure!(!answer.contains("NXDOMAIN"), "{answer}");
    Ok(())
}

#[test]
fn network_modes_are_what_they_say() -> anyhow::Result<()> {
    needs_all!();
    let board = Board::with_app()?;
    up(
        &board,
        r#"
services:
  host: {APP, command: sleep 1000, network_mode: host}
  none: {APP, command: sleep 1000, network_mode: none}
  vpn: {APP, SERVE, restart: always, ports: ["8080:80"]}
  app: {APP, command: sleep 1000, network_mode: "service:vpn"}
  fixed: {APP, command: sleep 1000, networks: {own: {ipv4_address: 10.99.1.77}}}
  inner: {APP, command: sleep 1000, networks: [closed]}
networks: {own: {ipam: {config: [{subnet: 10.99.1.0/24}]}}, closed: {internal: true}}
"#,
    )?;
    ensure!(inside(&board, "host", "ip -o link")?.contains("cor-"), "the host's own interfaces");
    let none = inside(&board, "none", "ip -o link")?;
    assert_eq!(none.lines().count(), 1, "{none}");
    ensure!(inside(&board, "fixed", "ip -o addr show eth0")?.contains("10.99.1.77/24"));
    let route = inside(&board, "inner", "ip route")?;
    ensure!(!route.contains("default"), "{route}");
    // F6: the namespace outlives the process that it was made for.
    wait_for(
        "vpn by app",
        || Ok(inside(&board, "app", "timeout 3 wget -qO- http://127.0.0.1/")?.contains("vpn")),
    )?;
    let vpn = board.service("vpn")?["pid"].as_i64().unwrap_or_default();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(vpn as i32), nix::sys::signal::Signal::SIGKILL)?;
    wait_for("vpn again", || Ok(board.service("vpn")?["restarts"] == 1))?;
    wait_for("its port", || Ok(http("127.0.0.1:8080", "/")?.contains("vpn")))?;
    wait_for("app's way", || Ok(inside(&board, "app", "timeout 3 wget -qO- http://127.0.0.1/")?.contains("vpn")))?;
    Ok(())
}

// E3
#[test]
fn flushed_rules_are_put_back_and_down_succeeds_without_them() -> anyhow::Result<()> {
    needs_all!();
    let board = Board::with_app()?;
    up(&board, "services:\n  web: {APP, SERVE, ports: [\"8080:80\"]}\n")?;
    wait_for("the port", || Ok(http("127.0.0.1:8080", "/")?.contains("web")))?;
    let pid = board.service("web")?["pid"].clone();
    run(Command::new("nft").args(["flush", "ruleset"]))?;
    wait_for("the port again", || Ok(http("127.0.0.1:8080", "/").is_ok_and(|it| it.contains("web"))))?;
    assert_eq!(board.service("web")?["pid"], pid);
    ensure!(board.coracle(&["inspect"])?.contains("\"rules_repaired\": 1"));
    // Endless flushing is answered, but not as often.
    for _ in 0..20 {
        run(Command::new("nft").args(["flush", "ruleset"]))?;
        std::thread::sleep(Duration::from_millis(350));
    }
    wait_for("the port in the end", || Ok(http("127.0.0.1:8080", "/").is_ok_and(|it| it.contains("web"))))?;
    let told: serde_json::Value = serde_json::from_str(&board.coracle(&["inspect"])?)?;
    let repaired = told["rules_repaired"].as_u64().context("a count")?;
    ensure!((4..10).contains(&repaired), "{repaired} repairs of 21");
    run(Command::new("nft").args(["flush", "ruleset"]))?;
    board.coracle(&["down"]).map(drop)
}

// E4
#[test]
fn a_range_that_is_taken_later_is_left_at_once_or_when_nothing_runs() -> anyhow::Result<()> {
    needs_all!();
    let board = Board::with_app()?;
    up(
        &board,
        "services:\n  web: {APP, SERVE, ports: [\"8080:80\"]}\n  beside: {APP, command: sleep 1000, network_mode: \"service:web\"}\n",
    )?;
    let ip = |arguments: &str| run(Command::new("ip").args(arguments.split(' '))).map(drop);
    let address = || -> anyhow::Result<String> {
        let address = board.service("web")?["addresses"]["default"].clone();
        Ok(address.as_str().context("an address")?.to_owned())
    };
    let range =
        |address: &str, end: &str| format!("{}.{end}", address.rsplit_once('.').map_or("", |(front, _)| front));
    let answers = || wait_for("the port", || Ok(http("127.0.0.1:8080", "/").is_ok_and(|it| it.contains("web"))));
    let pids = || anyhow::Ok([board.service("web")?["pid"].clone(), board.service("beside")?["pid"].clone()]);
    answers()?;
    let (first, before) = (address()?, pids()?);
    // A VPN that takes everything hides nothing of ours.
    ip("link add lan type bridge")?;
    ip("link set lan up")?;
    ip("route add 0.0.0.0/1 dev lan")?;
    ip("route add 128.0.0.0/1 dev lan")?;
    // A route is hidden: nothing that runs is touched, and somebody is told.
    ip(&format!("route add {} dev lan", range(&first, "0/25")))?;
    wait_for("a note", || {
        Ok(board.coracle(&["ps"])?.contains("it gets another range when nothing of demo runs"))
    })?;
    assert_eq!((address()?, pids()?), (first.clone(), before.clone()));
    board.coracle(&["stop"])?;
    board.coracle(&["start"])?;
    board.wait_for_service("beside", "state", "running".into())?;
    let second = address()?;
    ensure!(range(&second, "") != range(&first, ""), "{first}, then {second}");
    answers()?;
    // The network of one of this machine's own interfaces: at once.
    let before = pids()?;
    ip(&format!("addr add {} dev lan", range(&second, "9/24")))?;
    wait_for("another range", || Ok(range(&address()?, "") != range(&second, "")))?;
    wait_for("both again", || {
        let now = pids()?;
        Ok(now.iter().zip(&before).all(|(now, before)| now.is_number() && now != before))
    })?;
    answers()?;
    ensure!(inside(&board, "beside", "ip -o addr")?.contains(&address()?), "it follows its owner");
    let routes = run(Command::new("ip").args(["route", "show", "match", &range(&second, "1")]))?;
    ensure!(!routes.contains("cor-"), "ours is out of the way: {routes}");
    ensure!(!board.coracle(&["ps"])?.contains("note:"));
    Ok(())
}

// E1
#[test]
fn a_udp_flow_from_before_reaches_the_container() -> anyhow::Result<()> {
    needs_all!();
    let board = Board::with_app()?;
    let outside = Neighbour::new()?;
    // Somebody else's rules make the kernel track flows before there are any of ours.
    for hook in ["prerouting", "output"] {
        let chain = format!("table ip theirs {{ chain {hook} {{ type nat hook {hook} priority -100; }}; }}");
        let file = board.path().join("theirs.nft");
        std::fs::write(&file, chain)?;
        run(Command::new("nft").arg("-f").arg(&file))?;
    }
    let sender = outside.send_datagrams(150);
    std::thread::sleep(std::time::Duration::from_millis(1000));
    up(
        &board,
        r#"
services:
  syslog: {APP, command: sleep 1000, ports: ["192.0.2.1:5514:514/udp"]}
"#,
    )?;
    // Nobody listens there: the container's kernel counts what comes (`NoPorts`, the third number).
    wait_for("a datagram", || {
        let counters = inside(&board, "syslog", "grep Udp: /proc/net/snmp")?;
        let numbers = counters.lines().nth(1).unwrap_or_default().to_owned();
        Ok(numbers.split(' ').nth(2).is_some_and(|count| count != "0"))
    })?;
    drop(sender);
    Ok(())
}

#[test]
fn a_project_that_is_taken_down_and_wanted_again_at_once_is_whole() -> anyhow::Result<()> {
    needs_all!();
    let board = Board::with_app()?;
    let text = "services:\n  web: {APP, SERVE, ports: [\"8080:80\"]}\n";
    up(&board, text)?;
    for _ in 0..8 {
        board.coracle(&["down"])?;
        ensure!(!run(Command::new("ip").args(["-o", "link"]))?.contains("cor-"), "down is over when all is gone");
        board.coracle(&["up", "-d"])?;
    }
    wait_for("the port", || Ok(http("127.0.0.1:8080", "/")?.contains("web")))?;
    let log = board.log("agent.log");
    let makes = log.matches("begins step=make network").count();
    assert_eq!(makes, 9, "each network is made once");
    Ok(())
}

/// Puts a script in the place of nft(8), for this board alone; `$NFT` in it is the real one.
fn replace_nft(board: &Board, script: &str) -> anyhow::Result<()> {
    let (real, ours) = (board.path().join("nft"), board.path().join("nft.sh"));
    std::fs::copy("/usr/sbin/nft", &real)?;
    std::fs::write(
        &ours,
        format!("#!/bin/sh\nNFT={}\ncd {}\n{script}\n", real.display(), board.path().display()),
    )?;
    std::fs::set_permissions(&ours, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    run(Command::new("mount").arg("--bind").arg(&ours).arg("/usr/sbin/nft")).map(drop)
}

#[test]
fn a_container_is_made_while_its_rules_are_and_runs_when_they_are_in_force() -> anyhow::Result<()> {
    needs_all!();
    let board = Board::with_app()?;
    replace_nft(&board, "sleep 1; $NFT \"$@\" && touch demo/rules/applied")?;
    std::fs::create_dir_all(board.path().join("demo/rules"))?;
    up(
        &board,
        r#"
services:
  web: {APP, command: sh -c 'ls /rules; exec sleep 1000', volumes: ["./rules:/rules"]}
"#,
    )?;
    wait_for("its word", || Ok(board.coracle(&["logs", "web"])?.contains("applied")))?;
    let log = board.log("agent.log");
    let at = |what: &str| log.lines().position(|line| line.contains(what));
    let (begun, started) = (at("begins step=start demo-web"), at("started container=demo-web"));
    ensure!(begun.is_some() && begun < started, "{log}");
    Ok(())
}

#[test]
fn a_container_whose_rules_are_refused_never_runs_until_they_are_taken() -> anyhow::Result<()> {
    needs_all!();
    let board = Board::with_app()?;
    replace_nft(&board, "sleep 0.3; test -e allowed || { echo broken >&2; exit 1; }; exec $NFT \"$@\"")?;
    std::fs::create_dir_all(board.path().join("demo/ran"))?;
    let text = r#"
services:
  web: {APP, command: sh -c 'touch /ran/once; exec sleep 1000', volumes: ["./ran:/ran"]}
"#;
    let refused = up(&board, text).expect_err("no rules, no container").to_string();
    ensure!(refused.contains("broken"), "{refused}");
    ensure!(!board.path().join("demo/ran/once").exists());
    let processes = || -> String {
        let folders = board.cgroups().into_iter().flat_map(std::fs::read_dir).flatten().flatten();
        folders.map(|it| std::fs::read_to_string(it.path().join("cgroup.procs")).unwrap_or_default()).collect()
    };
    wait_for("nothing of it is left waiting", || Ok(processes().is_empty()))?;
    std::fs::write(board.path().join("allowed"), "")?;
    board.coracle(&["up", "-d"])?;
    wait_for("its mark", || Ok(board.path().join("demo/ran/once").exists()))
}

/// A name server that knows one address for every name; it ends with the test.
fn serve_names(address: &str, answer: [u8; 4]) -> anyhow::Result<()> {
    let socket = std::net::UdpSocket::bind((address, 53))?;
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            // RFC 1035, section 4.1: it is an answer, with as many records as were asked for, and none beside.
            let name = query[12..length].iter().position(|&byte| byte == 0).unwrap_or(0);
            let mut reply = query[..12 + name + 5].to_vec();
            let is_a = reply.ends_with(&[0, 1, 0, 1]);
            reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
            if is_a {
                reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                reply.extend(answer);
            }
            let _ = socket.send_to(&reply, from);
        }
    });
    Ok(())
}

#[test]
fn name_servers_that_come_after_the_services_are_theirs() -> anyhow::Result<()> {
    needs_all!();
    let board = Board::with_app()?;
    // A board without a network: the link leads nowhere, until whoever makes the network writes there.
    let (etc, made) = (board.path().join("etc"), board.path().join("run/manager"));
    for folder in ["upper", "work"] {
        std::fs::create_dir_all(etc.join(folder))?;
    }
    let layers = format!("lowerdir=/etc,upperdir={0}/upper,workdir={0}/work", etc.display());
    if run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &layers, "/etc"])).is_err() {
        println!("skipped: no overlay over this machine's /etc");
        return Ok(());
    }
    std::fs::remove_file("/etc/resolv.conf")?;
    std::os::unix::fs::symlink(made.join("resolv.conf"), "/etc/resolv.conf")?;
    up(
        &board,
        r#"
services:
  host: {APP, command: sleep 1000, network_mode: host}
  beside: {APP, command: sleep 1000, network_mode: "service:host"}
  app: {APP, command: sleep 1000}
  own: {APP, command: sleep 1000, network_mode: host, dns: [192.0.2.53]}
"#,
    )?;
    let servers = |service: &str| inside(&board, service, "cat /etc/resolv.conf");
    assert_eq!(servers("host")?, "");
    serve_names("127.0.0.3", [192, 0, 2, 7])?;
    std::fs::create_dir(&made)?;
    // The manager's first address is what tells of it.
    run(Command::new("ip").args(["addr", "add", "192.0.2.200/32", "dev", "lo"]))?;
    let text = |server: &str| format!("search example\nnameserver {server}\n");
    let write = |server: &str| -> anyhow::Result<()> {
        std::fs::write(made.join("resolv.conf.new"), text(server))?;
        Ok(std::fs::rename(made.join("resolv.conf.new"), made.join("resolv.conf"))?)
    };
    write("127.0.0.3")?;
    wait_for("the host's servers", || Ok(servers("host")? == text("127.0.0.3")))?;
    wait_for("beside", || Ok(servers("beside")? == text("127.0.0.3")))?;
    ensure!(inside(&board, "app", "nslookup -type=a away.test")?.contains("192.0.2.7"), "asked for the service");
    // No route changes with these.
    write("127.0.0.44")?;
    wait_for("other servers", || Ok(servers("host")? == text("127.0.0.44")))?;
    write("127.0.0.3")?;
    wait_for("the first again", || Ok(servers("host")? == text("127.0.0.3")))?;
    ensure!(inside(&board, "app", "nslookup -type=a far.test")?.contains("192.0.2.7"), "asked for the service");
    assert_eq!(servers("own")?, "nameserver 192.0.2.53\n", "its own are its own");
    Ok(())
}
