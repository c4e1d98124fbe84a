//! The default profile's programs for what services have without a word. `build.rs` makes them, so that no start of a
//! container has to.

use super::default::{profile, that_matter};
use super::profile::Arch;
use super::program::{CompileError, Filter, Instruction};

/// A program that was made with this one, for the processor that this one is for.
struct Built {
    /// Capabilities that change the profile ([`that_matter`]).
    capabilities: &'static [&'static str],
    program: &'static [Instruction],
}

include!(concat!(env!("OUT_DIR"), "/default_filters.rs"));

/// The default profile's filter for who has these capabilities (names without `CAP_`) on this machine.
///
/// # Errors
/// When the kernel would not take it.
pub fn default_filter(capabilities: &[&str]) -> Result<Filter, CompileError> {
    let wanted = that_matter(capabilities);
    match BUILT.iter().find(|built| built.capabilities == wanted) {
        Some(built) => Ok(Filter { program: built.program.into(), log: false, notify: false }),
        None => Filter::of(&profile(capabilities), Arch::of_this_machine()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::program::compile;
    use super::*;
    use crate::container::DEFAULT_CAPABILITIES;

    #[test]
    fn what_was_built_is_what_would_be_compiled() {
        for built in BUILT {
            let compiled = compile(&profile(built.capabilities), Arch::of_this_machine()).expect("compiles");
            assert!(built.program == compiled, "{:?}", built.capabilities);
        }
    }

    #[test]
    fn services_find_theirs_built() {
        for capabilities in [DEFAULT_CAPABILITIES, &[]] {
            let filter = default_filter(capabilities).expect("a filter");
            assert!(matches!(filter.program, std::borrow::Cow::Borrowed(_)), "{capabilities:?}");
        }
        let more = default_filter(&["SYS_PTRACE"]).expect("a filter");
        assert_eq!(
            more.program,
            compile(&profile(&["SYS_PTRACE"]), Arch::of_this_machine()).expect("compiles"),
            "another set is compiled"
        );
    }
}
