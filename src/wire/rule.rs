//! The rules of the protocol, by number (`bs_rule` in `xdr/bistream.x`).

use std::fmt;

macro_rules! rules {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal;)*) => {
        /// A rule that a peer can break (`bs_rule`): CLOSE says which in `rule`, a refusal or reset in `int2`.
        ///
        /// Rules up to 18 end the session, 32 and 33 the stream, those from 48 on the call.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Rule {
            $($(#[$doc])* $variant = $number,)*
        }

        impl Rule {
            /// Every rule, by rising number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The rule of this number; `None`: 0, or one of a later peer's.
            pub fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// Its name in docs/protocol.md.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

rules! {
    /// A length word under 28 or over the receiver's bound.
    Length = 1, "length";
    /// A type, status or serial that its procedure does not have.
    Header = 2, "header";
    /// A procedure of the block that no agreed feature defines.
    Procedure = 3, "procedure";
    /// A body that does not decode strictly.
    Body = 4, "body";
    /// A BiStream packet before HELLO stands.
    HelloFirst = 5, "hello-first";
    /// A second HELLO, or one from the accepting side.
    HelloOnce = 6, "hello-once";
    /// A reply to no call.
    Reply = 7, "reply";
    /// A HELLO reply that picks what was not offered, lacks what was needed, or states limits out of range.
    Choice = 8, "choice";
    /// OPEN under an id of the other side's, or 0.
    IdParity = 9, "id-parity";
    /// OPEN under an id not above the side's last.
    IdReused = 10, "id-reused";
    /// A packet for an id that was never opened.
    IdUnknown = 11, "id-unknown";
    /// A packet other than reset for a stream whose OPEN was not answered.
    BeforeReply = 12, "before-reply";
    /// DATA of no byte, or of more than `max_data`.
    DataSize = 13, "data-size";
    /// DATA beyond the limit.
    CreditOverrun = 14, "credit-overrun";
    /// CREDIT for more than was sent.
    Consumed = 15, "consumed";
    /// STREAM_HOLE without the feature, of a bad length or with flags.
    Hole = 16, "hole";
    /// Too many refused OPENs standing.
    OpenFlood = 17, "open-flood";
    /// Too many control packets that change nothing.
    Flood = 18, "flood";
    /// DATA or finish after finish.
    AfterFinish = 32, "after-finish";
    /// A finish whose offset is not what was received.
    FinalOffset = 33, "final-offset";
    /// An empty target name, or one with control characters.
    TargetName = 48, "target-name";
    /// A priority above [`PRIORITY_MAX`](super::PRIORITY_MAX).
    Priority = 49, "priority";
    /// A needed extension that is not known.
    Extension = 50, "extension";
    /// OPEN above `max_streams` or the memory budget, or too many in too short a time.
    StreamLimit = 51, "stream-limit";
    /// OPEN while draining.
    Closing = 52, "closing";
    /// HELLO without a version in common.
    Version = 53, "version";
    /// HELLO that needs a feature that is not there, or needs what it does not offer.
    Feature = 54, "feature";
    /// HELLO whose `max_data` is out of range.
    Limits = 55, "limits";
}

impl Rule {
    /// Its number on the wire.
    pub fn number(self) -> u32 {
        self as u32
    }
}

/// `rule 14 (credit-overrun)`
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {} ({})", self.number(), self.name())
    }
}
