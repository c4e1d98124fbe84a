//! Which device nodes a container may use, as rules of the v1 device controller
//! (Documentation/admin-guide/cgroup-v1/devices.rst). Pure.

/// Device nodes that every container may use: null, zero, full, random, urandom, tty, ptmx and its own terminals.
const DEFAULT: &[&str] = &["1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:2", "136:*"];

/// A device node that a container is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// `c` or `b`.
    pub kind: char,
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Some of `r`, `w`, `m`.
    pub access: String,
}

/// What is allowed beside nothing. `written` are rules of the compose file, as the kernel takes them.
pub fn allowed(granted: &[Granted], written: &[String]) -> Vec<String> {
    let mut rules: Vec<String> = DEFAULT.iter().map(|numbers| format!("c {numbers} rwm")).collect();
    let nodes = granted.iter().map(|node| format!("{} {}:{} {}", node.kind, node.major, node.minor, node.access));
    rules.extend(nodes);
    rules.extend(written.iter().cloned());
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_granted_node_comes_beside_those_that_every_program_needs() {
        let granted = Granted { kind: 'c', major: 254, minor: 0, access: "rw".to_owned() };
        let rules = allowed(&[granted], &["b 7:* r".to_owned()]);
        assert!(rules.contains(&"c 1:3 rwm".to_owned()) && rules.contains(&"c 136:* rwm".to_owned()));
        assert!(rules.contains(&"c 254:0 rw".to_owned()) && rules.contains(&"b 7:* r".to_owned()));
        assert!(!rules.iter().any(|rule| rule.starts_with("a ") || rule.contains("*:*")));
    }
}
