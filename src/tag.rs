//! The tag: the name by which the guest mounts the share.

use std::str::FromStr;

/// The longest tag that is accepted: QEMU takes 256 bytes of configuration, two of which are the
/// length. Linux takes any tag, which users have to type.
const MAX: usize = 254;

/// 1 to 254 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag(String);

impl Tag {
    /// `struct virtio_9p_config`: the tag's length and its bytes, without a NUL.
    pub fn config_space(&self) -> Vec<u8> {
        let mut space = (self.0.len() as u16).to_le_bytes().to_vec();
        space.extend_from_slice(self.0.as_bytes());
        space
    }

    /// How the guest mounts the share, as a line for its shell.
    pub fn mount_line(&self) -> String {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+,=".contains(c);
        let tag = match self.0.starts_with('-') || !self.0.chars().all(is_plain) {
            false => self.0.clone(),
            true => format!("-- '{}'", self.0.replace('\'', r"'\''")),
        };
        format!("mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 {tag} /mnt")
    }
}

impl std::fmt::Display for Tag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Tag {
    type Err = String;

    fn from_str(text: &str) -> Result<Tag, String> {
        match text.len() {
            0 => Err("a tag cannot be empty: the guest mounts by it".into()),
            1..=MAX => Ok(Tag(text.into())),
            length => Err(format!(
                "{length} bytes are too long for a tag, {MAX} is the most"
            )),
        }
    }
}
