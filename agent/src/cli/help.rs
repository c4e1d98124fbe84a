//! What `--help` says, and shell completions made of the same table.

use super::{Done, Failed};
use crate::cli::options::Options;
use crate::exit::Code;

/// A command's help.
pub struct About {
    /// Its name.
    pub name: &'static str,
    /// How it is called.
    usage: &'static str,
    /// One line.
    line: &'static str,
    /// Its own options, name and meaning.
    options: &'static [(&'static str, &'static str)],
    /// Lines that can be typed.
    examples: &'static [&'static str],
    /// Not for everyday use.
    internal: bool,
}

const PROJECT: &[(&str, &str)] = &[
    ("-f, --file FILE", "compose file; else compose.yaml or docker-compose.yml of the folder"),
    ("-p, --project-name NAME", "project name; else the file's `name`, else the folder's"),
    ("--project-directory FOLDER", "folder that relative paths count from"),
    ("--profile NAME", "services of this profile too"),
    ("--env-file FILE", "variables in place of .env"),
];

const REGISTRY: &[(&str, &str)] = &[
    ("--plain-http HOST[:PORT]", "plain HTTP is allowed for this registry"),
    ("--ca-file FILE", "certificate authority, PEM, beside the system's"),
    ("--docker-config FILE", "credentials; else ~/.docker/config.json"),
];

const LOCAL: &[(&str, &str)] = &[
    ("--data FOLDER", "data folder (/var/lib/coracle)"),
    ("--run FOLDER", "run folder, in memory (/run/coracle)"),
    ("-h, --help", "this text"),
];

const COMMANDS: &[About] = &[
    About {
        name: "up",
        usage: "up [-d] [-f FILE] [FOLDER]",
        line: "make the device equal to a compose file",
        options: &[
            ("-d, --detach", "do not stay: services go on"),
            ("--wait", "with -d, until services run and are healthy"),
            ("--force-recreate", "make all containers anew"),
            ("--pull always|missing", "ask for newer images of the same name"),
            ("--image SERVICE=REF", "image in place of the file's"),
            ("--allow-bind PATH", "bind mounts below this path are allowed"),
        ],
        examples: &[
            "coracle up",
            "coracle up -d -f release/docker-compose.yml",
            "coracle up --image web=registry.example/web:2",
        ],
        internal: false,
    },
    About {
        name: "down",
        usage: "down [-v] [FOLDER]",
        line: "stop and remove a project's containers and networks",
        options: &[("-v, --volumes", "remove its volumes too")],
        examples: &["coracle down", "coracle down -p demo -v"],
        internal: false,
    },
    About {
        name: "ps",
        usage: "ps [--json] [FOLDER]",
        line: "show services and what they wait for",
        options: &[
            ("--json", "for programs"),
            ("-q", "container ids alone"),
            ("--services", "names of services alone"),
        ],
        examples: &["coracle ps", "coracle ps -p demo --json"],
        internal: false,
    },
    About {
        name: "logs",
        usage: "logs [-f] [SERVICE...]",
        line: "show what services wrote",
        options: &[
            ("-f, --follow", "go on with what comes"),
            ("--since TIME", "not before: 10m, 2026-01-31T12:00:00Z"),
            ("--until TIME", "not after"),
            ("-n, --tail N", "last lines of each service"),
            ("-t, --timestamps", "with the time of arrival"),
            ("--no-log-prefix", "without the service's name"),
            ("--json", "for programs"),
        ],
        examples: &["coracle logs -f web", "coracle logs --since 10m --tail 100"],
        internal: false,
    },
    About {
        name: "exec",
        usage: "exec [-T] SERVICE COMMAND [ARGUMENT...]",
        line: "run a command in a running service",
        options: &[
            ("-T, --no-tty", "no terminal, although there is one"),
            ("-i, -t", "taken as Docker's: both are on with a terminal"),
            ("-u, --user USER[:GROUP]", "by name or number"),
            ("-w, --workdir FOLDER", "working folder"),
            ("-e, --env NAME=VALUE", "variable"),
            ("--privileged", "all capabilities"),
        ],
        examples: &["coracle exec web sh", "coracle exec -u 0 db cat /etc/passwd"],
        internal: false,
    },
    About {
        name: "stop",
        usage: "stop [SERVICE...]",
        line: "stop services until they are started by hand",
        options: &[],
        examples: &["coracle stop web"],
        internal: false,
    },
    About {
        name: "start",
        usage: "start [SERVICE...]",
        line: "start services that were stopped or ended",
        options: &[],
        examples: &["coracle start web"],
        internal: false,
    },
    About {
        name: "restart",
        usage: "restart [SERVICE...]",
        line: "stop and start services",
        options: &[],
        examples: &["coracle restart web"],
        internal: false,
    },
    About {
        name: "status",
        usage: "status",
        line: "show everything that the agent tells about itself, as JSON",
        options: &[],
        examples: &[],
        internal: true,
    },
    About {
        name: "stats",
        usage: "stats [--once] [--json] [SERVICE...]",
        line: "show what services use of processor and memory",
        options: &[("--once", "one look")],
        examples: &["coracle stats --once"],
        internal: false,
    },
    About {
        name: "top",
        usage: "top [SERVICE...]",
        line: "show the processes of services",
        options: &[],
        examples: &["coracle top web"],
        internal: false,
    },
    About {
        name: "inspect",
        usage: "inspect [SERVICE...]",
        line: "show everything that is known of services, as JSON",
        options: &[],
        examples: &["coracle inspect web"],
        internal: false,
    },
    About {
        name: "pull",
        usage: "pull [FOLDER | REFERENCE...]",
        line: "fetch the images of a project, or images by name",
        options: &[("--json", "for programs")],
        examples: &["coracle pull", "coracle pull debian:12"],
        internal: false,
    },
    About {
        name: "import",
        usage: "import [--name REFERENCE] PATH",
        line: "take images from an OCI layout or a docker save archive, without a network",
        options: &[("--name REFERENCE", "name of an image that has none")],
        examples: &["coracle import release.tar", "coracle import --name registry.example/web:2 layout/"],
        internal: false,
    },
    About {
        name: "preload",
        usage: "preload FOLDER",
        line: "take the images of FOLDER/images and the project of FOLDER, once: for images of boards",
        options: &[],
        examples: &["coracle preload /mnt/data/preload"],
        internal: false,
    },
    About {
        name: "images",
        usage: "images [--json]",
        line: "show the images of the store",
        options: &[],
        examples: &["coracle images"],
        internal: false,
    },
    About {
        name: "df",
        usage: "df [--free] [--json]",
        line: "show where the bytes of the data folder are",
        options: &[("--free", "remove images that no project wants")],
        examples: &["coracle df", "coracle df --free"],
        internal: false,
    },
    About {
        name: "config",
        usage: "config [-q] [--json] [FOLDER]",
        line: "check a project and print it normalised",
        options: &[("-q", "check only")],
        examples: &["coracle config", "coracle config -q -f docker-compose.yml"],
        internal: false,
    },
    About {
        name: "plan",
        usage: "plan [--json] [FOLDER]",
        line: "show the steps that `up` would take, and why",
        options: &[],
        examples: &["coracle plan"],
        internal: false,
    },
    About {
        name: "shutdown",
        usage: "shutdown",
        line: "end the agent; services go on, and the shim with them",
        options: &[],
        examples: &[],
        internal: false,
    },
    About {
        name: "self-update",
        usage: "self-update FILE | --own",
        line: "another program for agent and shim of a board, without a reboot",
        options: &[("--own", "back to the image's own")],
        examples: &["coracle self-update /mnt/data/coracle-0.2"],
        internal: true,
    },
    About {
        name: "completion",
        usage: "completion bash|zsh|fish",
        line: "print a completion script",
        options: &[],
        examples: &["coracle completion bash > /etc/bash_completion.d/coracle"],
        internal: false,
    },
    About {
        name: "agent",
        usage: "agent",
        line: "run the agent in the foreground",
        options: &[
            ("--supervised", "somebody else starts the shim (coracle init)"),
            ("--safe", "do no step of a plan; what runs goes on"),
            ("--board", "take config.json from the boot partition of an image of ours"),
        ],
        examples: &[],
        internal: true,
    },
    About {
        name: "shim",
        usage: "shim",
        line: "run the parent of all containers (started by the agent)",
        options: &[],
        examples: &[],
        internal: true,
    },
    About {
        name: "version",
        usage: "version",
        line: "print the version",
        options: &[],
        examples: &[],
        internal: true,
    },
];

/// The help of a command.
pub fn about(command: &str) -> Option<&'static About> {
    COMMANDS.iter().find(|about| about.name == command)
}

/// Prints help about a command, or about all.
pub fn print(command: &str) -> Done {
    if command.is_empty() {
        say!("coracle: compose releases on small boards\n\nusage: coracle COMMAND [OPTION...]\n");
        for about in COMMANDS.iter().filter(|about| !about.internal) {
            say!("  {:<11}{}", about.name, about.line);
        }
        say!("\n`coracle help COMMAND` tells more.");
        return Ok(Code::Done);
    }
    let about = about(command)
        .ok_or_else(|| Failed::new(Code::Configuration, format!("there is no command {command:?}")))?;
    say!("{}\n\nusage: coracle {}\n", about.line, about.usage);
    let takes_project = !matches!(
        command,
        "images"
            | "status"
            | "import"
            | "preload"
            | "df"
            | "shutdown"
            | "completion"
            | "agent"
            | "self-update"
            | "shim"
            | "version"
    );
    let mut groups = vec![about.options];
    if takes_project {
        groups.push(PROJECT);
    }
    if matches!(command, "up" | "pull" | "plan") {
        groups.push(REGISTRY);
    }
    groups.push(LOCAL);
    for (option, meaning) in groups.into_iter().flatten() {
        say!("  {option:<28}{meaning}");
    }
    if !about.examples.is_empty() {
        say!("\nexamples:");
        about.examples.iter().for_each(|example| say!("  {example}"));
    }
    Ok(Code::Done)
}

/// Prints a completion script.
pub fn completion(options: &Options) -> Done {
    let names: Vec<&str> = COMMANDS.iter().filter(|about| !about.internal).map(|about| about.name).collect();
    match options.rest.first().map(String::as_str) {
        Some("bash") => say!(
            "_coracle() {{\n  local word=${{COMP_WORDS[COMP_CWORD]}}\n  if [ \"$COMP_CWORD\" -eq 1 ]; then COMPREPLY=($(compgen -W \"{}\" -- \"$word\"))\n  else COMPREPLY=($(compgen -W \"$(coracle ps --services 2>/dev/null)\" -- \"$word\") $(compgen -f -- \"$word\")); fi\n}}\ncomplete -F _coracle coracle",
            names.join(" ")
        ),
        Some("zsh") => {
            say!("#compdef coracle\n_arguments '1:command:((");
            COMMANDS.iter().filter(|it| !it.internal).for_each(|it| say!("  {}\\:\"{}\"", it.name, it.line));
            say!("))' '*::argument:_files'");
        }
        Some("fish") => {
            for about in COMMANDS.iter().filter(|about| !about.internal) {
                say!(
                    "complete -c coracle -n __fish_use_subcommand -f -a {} -d '{}'",
                    about.name,
                    about.line.replace('\'', "\\'")
                );
            }
        }
        _ => return Err(Failed::new(Code::Configuration, "completion takes bash, zsh or fish")),
    }
    Ok(Code::Done)
}
