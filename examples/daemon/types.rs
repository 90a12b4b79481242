//! What the procedures take and give, as XDR lays it out.
//!
//! Strings come in with a bound: `Reader` has methods for them, and xdr-codec's own would reserve what the client says.

use xdr_codec::{Pack, Result, Unpack};

use virbistream::wire::{BodyError, Reader};

/// libvirt's own bound of strings.
const TEXT_MAX: usize = 4 << 20;

/// `string<>`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Text(pub(crate) String);

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl<'a> Unpack<Reader<'a>> for Text {
    fn unpack(input: &mut Reader<'a>) -> Result<(Self, usize)> {
        input.counted(|input| {
            let bytes = input.flex("a string", TEXT_MAX)?;
            Ok(str::from_utf8(bytes).map_or_else(
                |_| {
                    input.note(BodyError::Utf8);
                    Self(String::new())
                },
                Self::from,
            ))
        })
    }
}

impl Pack<Vec<u8>> for Text {
    fn pack(&self, out: &mut Vec<u8>) -> Result<usize> {
        xdr_codec::pack_string(&self.0, Some(TEXT_MAX), out)
    }
}

/// `opaque[16]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Uuid(pub(crate) [u8; 16]);

impl<'a> Unpack<Reader<'a>> for Uuid {
    fn unpack(input: &mut Reader<'a>) -> Result<(Self, usize)> {
        // Too short is noted by the reader, and what is unpacked then does not count.
        input.counted(|input| Ok(Self(input.fixed(16).try_into().unwrap_or_default())))
    }
}

impl Pack<Vec<u8>> for Uuid {
    fn pack(&self, out: &mut Vec<u8>) -> Result<usize> {
        xdr_codec::pack_opaque_array(&self.0, 16, out)
    }
}

/// A struct that is taken and given field by field.
macro_rules! fields {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub(crate) struct $name {
            $(pub(crate) $field: $type,)*
        }

        impl<'a> Unpack<Reader<'a>> for $name {
            fn unpack(input: &mut Reader<'a>) -> Result<(Self, usize)> {
                input.counted(|input| Ok(Self { $($field: xdr_codec::unpack(input)?,)* }))
            }
        }

        impl Pack<Vec<u8>> for $name {
            fn pack(&self, out: &mut Vec<u8>) -> Result<usize> {
                Ok(0 $(+ self.$field.pack(out)?)*)
            }
        }
    };
}

fields!(Domain { name: Text, uuid: Uuid, id: i32 });
fields!(Screenshot { domain: Domain, screen: u32, flags: u32 });
fields!(ListAll { wants_list: i32, flags: u32 });
fields!(State { state: i32, reason: i32 });
fields!(Pool { name: Text, uuid: Uuid });
fields!(Volume { pool: Text, name: Text, key: Text });
fields!(
    /// A volume of a pool, asked for.
    Lookup { pool: Pool, volume: Text }
);
fields!(
    /// A volume to be made.
    Create { pool: Pool, xml: Text, flags: u32 }
);
fields!(Delete { volume: Volume, flags: u32 });
fields!(
    /// Of an upload and of a download.
    Range { volume: Volume, offset: u64, length: u64, flags: u32 }
);

/// The answer to [`ListAll`]. It is only given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed(pub(crate) Vec<Domain>, pub(crate) u32);

impl Pack<Vec<u8>> for Listed {
    fn pack(&self, out: &mut Vec<u8>) -> Result<usize> {
        Ok(self.0.pack(out)? + self.1.pack(out)?)
    }
}
