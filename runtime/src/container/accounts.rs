//! Users and groups of an image: `/etc/passwd` and `/etc/group` of its own root.
//!
//! The rule is Docker's: `user` alone takes the user's primary group and every group that lists it; `user:group`
//! takes that group only; a number without an entry has group 0, no other groups and `/` as home.

use std::collections::BTreeSet;

/// Bytes of one account file that are read. The largest seen in real images are some ten KiB.
pub const MAX_ACCOUNT_FILE: u64 = 1024 * 1024;

/// Largest user or group number: the kernel keeps 4294967295 for "no change" (setreuid(2)).
const MAX_ID: u32 = u32::MAX - 1;

/// The content of both files.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    /// `/etc/passwd`, empty when there is none.
    pub passwd: Vec<u8>,
    /// `/etc/group`, empty when there is none.
    pub group: Vec<u8>,
}

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups, the primary one among them.
    pub groups: Vec<u32>,
    /// Home folder.
    pub home: String,
}

/// Why a user or group is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    /// The name is not in the file.
    #[error("user {0:?}: not in the image's /etc/passwd; use a number or add the user to the image")]
    UnknownUser(String),
    /// The name is not in the file.
    #[error("group {0:?}: not in the image's /etc/group; use a number or add the group to the image")]
    UnknownGroup(String),
    /// Not 0 to 4294967294.
    #[error("{0:?} is no user or group number: 0 to {MAX_ID} (searched /etc/passwd and /etc/group of the image)")]
    OutOfRange(String),
}

struct User<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl Accounts {
    /// Looks `user[:group]` up and adds `extra` groups; an empty `user` is root.
    ///
    /// # Errors
    /// When a name is not there, or a number is out of range.
    pub fn resolve(&self, user: &str, extra: &[String]) -> Result<Identity, AccountError> {
        let (user, group) = user.split_once(':').map_or((user, None), |(user, group)| (user, Some(group)));
        let user = if user.is_empty() { "0" } else { user };
        let entry = self.find_user(user)?;
        let (uid, mut gid, home) = match &entry {
            Found::Entry(entry) => (entry.uid, entry.gid, String::from_utf8_lossy(entry.home).into_owned()),
            Found::Number(uid) => (*uid, 0, String::new()),
        };
        let mut groups = BTreeSet::new();
        match group.filter(|group| !group.is_empty()) {
            Some(group) => gid = self.find_group(group)?,
            None => {
                if let Found::Entry(entry) = &entry {
                    groups.extend(self.groups().filter(|group| group.lists(entry.name)).map(|group| group.gid));
                }
            }
        }
        for group in extra {
            groups.insert(self.find_group(group)?);
        }
        groups.remove(&gid);
        let groups = std::iter::once(gid).chain(groups).collect();
        Ok(Identity { uid, gid, groups, home: if home.is_empty() { "/".to_owned() } else { home } })
    }

    fn find_user(&self, wanted: &str) -> Result<Found<'_>, AccountError> {
        if let Some(user) = self.users().find(|user| user.name == wanted.as_bytes()) {
            return Ok(Found::Entry(user));
        }
        match number(wanted)? {
            Some(uid) => Ok(self.users().find(|user| user.uid == uid).map_or(Found::Number(uid), Found::Entry)),
            None => Err(AccountError::UnknownUser(wanted.to_owned())),
        }
    }

    fn find_group(&self, wanted: &str) -> Result<u32, AccountError> {
        if let Some(group) = self.groups().find(|group| group.name == wanted.as_bytes()) {
            return Ok(group.gid);
        }
        number(wanted)?.ok_or_else(|| AccountError::UnknownGroup(wanted.to_owned()))
    }

    fn users(&self) -> impl Iterator<Item = User<'_>> {
        self.passwd.split(|&byte| byte == b'\n').filter_map(|line| {
            let mut fields = line.split(|&byte| byte == b':');
            let (name, _password) = (fields.next()?, fields.next()?);
            let (uid, gid) = (parse_id(fields.next()?)?, parse_id(fields.next()?)?);
            Some(User { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
        })
    }

    fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        self.group.split(|&byte| byte == b'\n').filter_map(|line| {
            let mut fields = line.split(|&byte| byte == b':');
            let (name, _password) = (fields.next()?, fields.next()?);
            let gid = parse_id(fields.next()?)?;
            Some(Group { name, gid, members: fields.next().unwrap_or_default() })
        })
    }
}

enum Found<'a> {
    Entry(User<'a>),
    Number(u32),
}

impl Group<'_> {
    fn lists(&self, name: &[u8]) -> bool {
        !name.is_empty() && self.members.split(|&byte| byte == b',').any(|member| member.trim_ascii() == name)
    }
}

fn parse_id(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// A number, `None` for a name.
fn number(text: &str) -> Result<Option<u32>, AccountError> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(id) if id <= MAX_ID => Ok(Some(id)),
        _ => Err(AccountError::OutOfRange(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image() -> Accounts {
        Accounts {
            passwd: b"root:x:0:0:root:/root:/bin/sh\nbroken line\npump:x:1000:1000::/home/pump:/bin/sh\n".to_vec(),
            group: b"root:x:0:\npump:x:1000:\ndialout:x:20:pump\n:::\ngpio:x:27:pump,other\naudio:x:29:\n"
                .to_vec(),
        }
    }

    fn check(user: &str, extra: &[&str]) -> Result<(u32, u32, Vec<u32>, String), AccountError> {
        let extra: Vec<String> = extra.iter().map(|&group| group.to_owned()).collect();
        image().resolve(user, &extra).map(|id| (id.uid, id.gid, id.groups, id.home))
    }

    // containerd/nerdctl#154, opencontainers/runc#1450, docker/cli#3058, containerd/containerd#11937
    #[test]
    fn name_and_its_number_have_the_same_groups_and_home() {
        let pump = Ok((1000, 1000, vec![1000, 20, 27], "/home/pump".to_owned()));
        assert_eq!(check("pump", &[]), pump);
        assert_eq!(check("1000", &[]), pump);
    }

    #[test]
    fn an_explicit_group_is_the_only_group() {
        let only = Ok((1000, 27, vec![27], "/home/pump".to_owned()));
        assert_eq!(check("pump:gpio", &[]), only);
        assert_eq!(check("1000:27", &[]), only);
    }

    #[test]
    fn a_number_without_an_entry_has_group_0_and_root_folder_as_home() {
        assert_eq!(check("4242", &[]), Ok((4242, 0, vec![0], "/".to_owned())));
    }

    #[test]
    fn empty_user_is_root() {
        assert_eq!(check("", &[]), Ok((0, 0, vec![0], "/root".to_owned())));
    }

    #[test]
    fn extra_groups_are_added_by_name_or_number() {
        assert_eq!(check("pump", &["audio", "44"]).map(|it| it.2), Ok(vec![1000, 20, 27, 29, 44]));
        assert_eq!(check("4242", &["44", "audio"]).map(|it| it.2), Ok(vec![0, 29, 44]));
        assert_eq!(check("pump", &["nogrp"]), Err(AccountError::UnknownGroup("nogrp".to_owned())));
    }

    #[test]
    fn unknown_names_and_impossible_numbers_are_refused() {
        assert_eq!(check("nobody2", &[]), Err(AccountError::UnknownUser("nobody2".to_owned())));
        assert_eq!(check("1000:nogrp", &[]), Err(AccountError::UnknownGroup("nogrp".to_owned())));
        for number in ["-1", "4294967295", "4294967296"] {
            assert_eq!(check(number, &[]), Err(AccountError::OutOfRange(number.to_owned())));
        }
    }

    #[test]
    fn a_missing_file_matters_for_names_only() {
        let empty = Accounts::default();
        assert_eq!(empty.resolve("7:8", &[]).map(|it| (it.uid, it.gid)), Ok((7, 8)));
        assert_eq!(empty.resolve("www", &[]), Err(AccountError::UnknownUser("www".to_owned())));
    }

    proptest! {
        #[test]
        fn any_file_and_any_user_is_answered(passwd in proptest::collection::vec(any::<u8>(), 0..300),
                group in proptest::collection::vec(any::<u8>(), 0..300), user in ".{0,20}") {
            let _ = Accounts { passwd, group }.resolve(&user, &[]);
        }
    }
}
