//! The groups of the host's users.

use std::collections::HashMap;
use std::io;
use std::path::Path;

/// Who is in which groups, from the host's files when the daemon started: later it cannot see them.
#[derive(Debug, Default)]
pub struct Users(HashMap<u32, Groups>);

/// The groups of one user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    /// The primary group.
    pub primary: u32,
    /// The others.
    pub supplementary: Vec<u32>,
}

impl Users {
    /// From `/etc/passwd` and `/etc/group` (passwd(5), group(5)). Errors: those of reading them.
    pub fn of_host() -> io::Result<Users> {
        let read = |path: &str| {
            std::fs::read(Path::new(path)).map(|text| String::from_utf8_lossy(&text).into_owned())
        };
        Ok(Users::parse(&read("/etc/passwd")?, &read("/etc/group")?))
    }

    /// The groups of a user; None if the host does not know the user.
    pub fn groups(&self, uid: u32) -> Option<&Groups> {
        self.0.get(&uid)
    }

    /// Malformed lines are skipped, as the C library does.
    fn parse(passwd: &str, group: &str) -> Users {
        let mut users = HashMap::new();
        let mut ids: HashMap<&str, u32> = HashMap::new();
        for line in passwd.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            if let [name, _, uid, gid, ..] = fields[..] {
                if let (Ok(uid), Ok(primary)) = (uid.parse(), gid.parse()) {
                    ids.entry(name).or_insert(uid);
                    users.entry(uid).or_insert(Groups {
                        primary,
                        supplementary: Vec::new(),
                    });
                }
            }
        }
        for line in group.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            if let [_, _, gid, members] = fields[..] {
                if let Ok(gid) = gid.parse() {
                    for user in members.split(',').filter_map(|name| ids.get(name.trim())) {
                        if let Some(groups) = users.get_mut(user) {
                            if groups.primary != gid && !groups.supplementary.contains(&gid) {
                                groups.supplementary.push(gid);
                            }
                        }
                    }
                }
            }
        }
        Users(users)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_in_the_groups_that_list_the_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n\
                      alice:x:1000:100::/home/alice:/bin/sh\n\
                      again:x:1000:5::/:/bin/sh\n\
                      broken line\n\
                      bob:x:nobody:1::/:\n";
        let group = "root:x:0:\nusers:x:100:alice,carol\nwheel:x:10:root,alice\n\
                     video:x:44:alice,alice\naudio:x:29:again\nbroken:x:y:alice\n";
        let users = Users::parse(passwd, group);
        assert_eq!(
            users.groups(1000),
            Some(&Groups {
                primary: 100,
                supplementary: vec![10, 44, 29],
            })
        );
        assert_eq!(users.groups(0).unwrap().supplementary, [10]);
        assert_eq!(users.groups(1001), None);
    }

    #[test]
    fn the_host_s_own_files_can_be_read() {
        assert_eq!(Users::of_host().unwrap().groups(0).unwrap().primary, 0);
    }
}
