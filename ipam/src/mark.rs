//! Who holds a node's Lease, and the mark that says of a holder that its machine is off (IPAM rule 5).
//!
//! ```text
//! Lease cairn-node-NODE   spec.holderIdentity                         NODE_UID/BOOT_ID   its agent
//!                         metadata.annotations[ANNOTATION_MACHINE_OFF] NODE_UID/BOOT_ID  an operator
//!                         metadata.annotations[ANNOTATION_MACHINE]     MACHINE_ID/SYSTEM_UUID
//!                         metadata.annotations[ANNOTATION_TAKEN_OVER]  NODE_UID/BOOT_ID, or SEVERAL
//!                         metadata.annotations[ANNOTATION_EARLIER_OFF] NODE_UID/BOOT_ID  an operator
//! IPBlock                 metadata.annotations[ANNOTATION_CLAIMED_BY]  MACHINE_ID/SYSTEM_UUID/BOOT_ID
//! ```
//!
//! The mark names one boot of one machine under one Node object. A machine that boots again, or a
//! Node that was created anew, is another holder, and the mark says nothing about it.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The annotation of a node's Lease that says which holder's machine is off: a [`Holder`].
pub const ANNOTATION_MACHINE_OFF: &str = "cairn.network/machine-off";

/// The annotation of a node's Lease that says on which machine its holder runs: a [`Machine`].
pub const ANNOTATION_MACHINE: &str = "cairn.network/machine";

/// The annotation of a node's Lease that names the [`Holder`] from which another machine took it over,
/// for as long as that one may hand out; [`SEVERAL`] when more than one may.
pub const ANNOTATION_TAKEN_OVER: &str = "cairn.network/taken-over-from";

/// What [`ANNOTATION_TAKEN_OVER`] says of more than one machine. No mark speaks for more than one.
pub const SEVERAL: &str = "several";

/// The annotation of a node's Lease that names the holder before whom every machine that had the Node is
/// off, as an operator says.
pub const ANNOTATION_EARLIER_OFF: &str = "cairn.network/earlier-machines-off";

/// The annotation of an IPBlock that names the machine which claimed it, or took it up last: a
/// [`Claimant`].
pub const ANNOTATION_CLAIMED_BY: &str = "cairn.network/claimed-by";

/// One boot of a machine under one Node object: who writes a node's Lease.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    /// The UID of the Node object.
    pub node_uid: String,
    /// The boot id of the machine's kernel.
    pub boot_id: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node_uid, self.boot_id)
    }
}

/// A text that names no holder.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("\"{text}\" is no holder of a node's Lease: write NODE_UID/BOOT_ID")]
pub struct HolderError {
    /// The text.
    pub text: String,
}

impl FromStr for Holder {
    type Err = HolderError;

    fn from_str(text: &str) -> Result<Holder, HolderError> {
        match text.split_once('/') {
            Some((uid, boot)) if !uid.is_empty() && !boot.is_empty() && !boot.contains('/') => {
                Ok(Holder { node_uid: uid.to_owned(), boot_id: boot.to_owned() })
            }
            _ => Err(HolderError { text: text.to_owned() }),
        }
    }
}

/// Whether `mark`, the value of [`ANNOTATION_MACHINE_OFF`], says that the machine of `holder` is
/// off. A mark that names nobody says nothing.
pub fn is_off(mark: Option<&str>, holder: &Holder) -> bool {
    mark.and_then(|mark| mark.parse::<Holder>().ok()).as_ref() == Some(holder)
}

/// Whether a machine that had the Node before its Lease's holder may still hand out: `from`, the value
/// of [`ANNOTATION_TAKEN_OVER`], speaks of one that `mark` does not say to be off.
pub fn others_rest(from: Option<&str>, mark: Option<&str>) -> bool {
    from.is_some_and(|from| !from.parse().is_ok_and(|before| is_off(mark, &before)))
}

/// What tells one machine from another over a reboot, as kubelet reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// `status.nodeInfo.machineID`: of the installed system, so that a copied disk carries it along.
    pub machine_id: String,
    /// `status.nodeInfo.systemUUID`: of the hardware or the virtual machine.
    pub system_uuid: String,
}

impl Machine {
    /// Whether both are one machine for certain. A value that is missing, or that other machines have
    /// as well, proves nothing.
    pub fn is_certainly(&self, other: &Machine) -> bool {
        !self.machine_id.is_empty() && self.has_own_uuid() && self == other
    }

    /// Whether the system UUID is of this hardware. Where the hardware gives none, kubelet reports the
    /// machine id in its place, and some boards carry what their maker forgot to fill in.
    fn has_own_uuid(&self) -> bool {
        let digits = |id: &str| id.replace('-', "").to_ascii_lowercase();
        let uuid = digits(&self.system_uuid);
        let unset = ['0', 'f'].iter().any(|digit| uuid.chars().all(|c| c == *digit));
        !unset && uuid != digits(&self.machine_id) && uuid != UUID_OF_MANY
    }
}

/// 03000200-0400-0500-0006-000700080009, the sample value of a firmware vendor.
const UUID_OF_MANY: &str = "03000200040005000006000700080009";

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.machine_id, self.system_uuid)
    }
}

/// The machine that an annotation names; what cannot be read is a machine of which nothing is known.
impl From<&str> for Machine {
    fn from(text: &str) -> Machine {
        let (machine_id, system_uuid) = text.split_once('/').unwrap_or_default();
        Machine { machine_id: machine_id.to_owned(), system_uuid: system_uuid.to_owned() }
    }
}

/// Who claimed a block: one boot of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claimant {
    /// The machine.
    pub machine: Machine,
    /// The boot id of its kernel.
    pub boot_id: String,
}

impl Claimant {
    /// What this one, who finds a block, has to think of the one who claimed it.
    pub fn likeness(&self, other: &Claimant) -> Likeness {
        let same_boot = !self.boot_id.is_empty() && self.boot_id == other.boot_id;
        match () {
            () if same_boot || self.machine.is_certainly(&other.machine) => Likeness::Same,
            () if self.machine == other.machine => Likeness::Like,
            // Its system was installed anew.
            () if self.machine.has_own_uuid()
                && self.machine.system_uuid == other.machine.system_uuid =>
            {
                Likeness::Like
            }
            () => Likeness::Other,
        }
    }
}

impl fmt::Display for Claimant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.machine, self.boot_id)
    }
}

/// The claimant that an annotation names; what cannot be read is one of whom nothing is known.
impl From<&str> for Claimant {
    fn from(text: &str) -> Claimant {
        let (machine, boot_id) = text.rsplit_once('/').unwrap_or_default();
        Claimant { machine: Machine::from(machine), boot_id: boot_id.to_owned() }
    }
}

/// How far two claimants are one machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Likeness {
    /// They are.
    #[default]
    Same,
    /// They look the same, as a machine after a reboot or a new installation does, and a copy of it.
    Like,
    /// They are not.
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_speaks_of_one_boot_under_one_node_object() {
        let holder = |uid: &str, boot: &str| Holder { node_uid: uid.into(), boot_id: boot.into() };
        let mark = holder("u1", "b1").to_string();
        assert_eq!(mark, "u1/b1");
        assert_eq!(mark.parse(), Ok(holder("u1", "b1")));
        assert!(is_off(Some(&mark), &holder("u1", "b1")));
        assert!(!is_off(Some(&mark), &holder("u1", "b2")), "booted again");
        assert!(!is_off(Some(&mark), &holder("u2", "b1")), "another Node object");
        assert!(!is_off(None, &holder("u1", "b1")));
        for nobody in ["", "/", "u1", "u1/", "/b1", "u1/b1/x"] {
            assert!(nobody.parse::<Holder>().is_err(), "{nobody}");
            assert!(!is_off(Some(nobody), &holder("u1", "b1")), "{nobody}");
        }
    }

    #[test]
    fn an_earlier_machine_rests_until_a_mark_names_it() {
        let cases = [
            (None, None, false),
            (None, Some("u1/b2"), false),
            (Some("u1/b1"), None, true),
            (Some("u1/b1"), Some("u1/b2"), true),
            (Some("u1/b1"), Some("u1/b1"), false),
            (Some(SEVERAL), Some("u1/b1"), true),
            (Some(SEVERAL), Some(SEVERAL), true),
        ];
        for (from, mark, expected) in cases {
            assert_eq!(others_rest(from, mark), expected, "{from:?} {mark:?}");
        }
    }

    #[test]
    fn a_machine_is_the_same_only_when_both_ids_say_so() {
        let machine = Machine { machine_id: "m".into(), system_uuid: "s".into() };
        assert_eq!(Machine::from(machine.to_string().as_str()), machine);
        assert!(machine.is_certainly(&machine));
        for (m, s) in [("m", "t"), ("n", "s"), ("m", ""), ("", "s")] {
            let other = Machine { machine_id: m.into(), system_uuid: s.into() };
            assert!(!machine.is_certainly(&other) && !other.is_certainly(&machine), "{other}");
        }
        assert!(!Machine::default().is_certainly(&Machine::default()));
        assert_eq!(Machine::from("nonsense"), Machine::default());
    }

    #[test]
    fn a_uuid_that_other_machines_may_have_proves_nothing() {
        const ID: &str = "1b4e28ba2fa14d73a8c7d1f0b3c5e697";
        let cases = [
            ("4c4c4544-0042-3510-8056-b7c04f465032", true),
            ("4C4C4544-0042-3510-8056-B7C04F465032", true),
            // The machine id in its place.
            (ID, false),
            ("1B4E28BA-2FA1-4D73-A8C7-D1F0B3C5E697", false),
            ("00000000-0000-0000-0000-000000000000", false),
            ("ffffffff-ffff-ffff-ffff-ffffffffffff", false),
            ("FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", false),
            ("03000200-0400-0500-0006-000700080009", false),
            ("", false),
        ];
        for (uuid, expected) in cases {
            let machine = Machine { machine_id: ID.into(), system_uuid: uuid.into() };
            assert_eq!(machine.is_certainly(&machine), expected, "{uuid}");
        }
    }

    #[test]
    fn a_claimant_is_the_same_one_by_its_boot_or_by_what_no_other_machine_has() {
        let claimant = |text: &str| Claimant::from(text);
        let rows = [
            ("m1/u1/b1", "m1/u1/b1", Likeness::Same),
            ("m1/u1/b1", "m1/u1/b2", Likeness::Same),
            ("m1/u1/b1", "m2/u1/b2", Likeness::Like),
            ("m1/m1/b1", "m2/m2/b2", Likeness::Other),
            ("m1/u1/b1", "m2/u2/b1", Likeness::Same),
            // The machine id in the place of a UUID, and nothing at all.
            ("m1/m1/b1", "m1/m1/b2", Likeness::Like),
            ("//b1", "//b2", Likeness::Like),
            ("//", "//", Likeness::Like),
            ("m1/u1/b1", "what", Likeness::Other),
        ];
        for (own, other, expected) in rows {
            assert_eq!(claimant(own).likeness(&claimant(other)), expected, "{own} {other}");
        }
        assert_eq!(claimant("m1/u1/b1").to_string(), "m1/u1/b1");
    }
}
