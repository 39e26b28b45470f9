//! The messages of Kata's agent that concern the network, as protobuf has them on the wire.
//!
//! Field numbers are those of Kata Containers' `src/libs/protocols/protos/{types,agent}.proto` and of ttrpc's
//! `request.proto`. They are few and flat, so they are written and read here by hand: unknown fields are skipped, as
//! protobuf wants it, and a field of another wire type than its own makes the message one that is not understood.
#![forbid(unsafe_code)]

/// Wire types.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// A message that is no protobuf, or none of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message cannot be understood")]
pub(crate) struct Malformed;

/// A message.
pub(crate) trait Message: Default {
    /// Writes its fields; those with their default value are left out.
    fn write(&self, to: &mut Writer);
    /// Takes a field over; what is unknown is skipped.
    fn field(&mut self, number: u64, value: Value<'_>) -> Result<(), Malformed>;

    /// Its bytes.
    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer(Vec::new());
        self.write(&mut writer);
        writer.0
    }

    /// Reads its bytes.
    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut message = Self::default();
        let mut rest = bytes;
        while !rest.is_empty() {
            let tag = varint(&mut rest)?;
            let value = match tag & 7 {
                VARINT => Value::Number(varint(&mut rest)?),
                BYTES => {
                    let length = usize::try_from(varint(&mut rest)?).map_err(|_| Malformed)?;
                    let (value, after) = rest.split_at_checked(length).ok_or(Malformed)?;
                    rest = after;
                    Value::Bytes(value)
                }
                FIXED64 => {
                    rest = rest.get(8..).ok_or(Malformed)?;
                    continue;
                }
                FIXED32 => {
                    rest = rest.get(4..).ok_or(Malformed)?;
                    continue;
                }
                _ => return Err(Malformed),
            };
            match tag >> 3 {
                0 => return Err(Malformed),
                number => message.field(number, value)?,
            }
        }
        Ok(message)
    }
}

/// The value of a field.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl Value<'_> {
    fn number(self) -> Result<u64, Malformed> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Bytes(_) => Err(Malformed),
        }
    }

    fn bytes(&self) -> Result<&[u8], Malformed> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Number(_) => Err(Malformed),
        }
    }

    fn text(self) -> Result<String, Malformed> {
        std::str::from_utf8(self.bytes()?).map(str::to_owned).map_err(|_| Malformed)
    }
}

fn varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0u64;
    for (place, &byte) in rest.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f).checked_shl(7 * place as u32).ok_or(Malformed)?;
        if byte < 0x80 {
            *rest = &rest[place + 1..];
            return Ok(value);
        }
    }
    Err(Malformed)
}

/// Bytes of a message that is being written.
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(&mut self, field: u64, value: u64) {
        if value != 0 {
            self.varint(field << 3 | VARINT);
            self.varint(value);
        }
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.varint(field << 3 | BYTES);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn text(&mut self, field: u64, value: &str) {
        if !value.is_empty() {
            self.bytes(field, value.as_bytes());
        }
    }
}

/// A call (ttrpc's Request).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) service: String,
    pub(crate) method: String,
    pub(crate) payload: Vec<u8>,
    /// How long the caller waits.
    pub(crate) timeout_nano: u64,
}

impl Message for Request {
    fn write(&self, to: &mut Writer) {
        to.text(1, &self.service);
        to.text(2, &self.method);
        to.bytes(3, &self.payload);
        to.number(4, self.timeout_nano);
    }

    fn field(&mut self, number: u64, value: Value<'_>) -> Result<(), Malformed> {
        match number {
            1 => self.service = value.text()?,
            2 => self.method = value.text()?,
            3 => self.payload = value.bytes()?.to_vec(),
            4 => self.timeout_nano = value.number()?,
            _ => {}
        }
        Ok(())
    }
}

/// What came of a call (ttrpc's Response).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: Status,
    pub(crate) payload: Vec<u8>,
}

impl Message for Response {
    fn write(&self, to: &mut Writer) {
        if self.status != Status::default() {
            to.bytes(1, &self.status.encode());
        }
        to.bytes(2, &self.payload);
    }

    fn field(&mut self, number: u64, value: Value<'_>) -> Result<(), Malformed> {
        match number {
            1 => self.status = Status::decode(value.bytes()?)?,
            2 => self.payload = value.bytes()?.to_vec(),
            _ => {}
        }
        Ok(())
    }
}

/// Why a call failed (google.rpc.Status); code 0 is success.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) code: u64,
    pub(crate) message: String,
}

impl Message for Status {
    fn write(&self, to: &mut Writer) {
        to.number(1, self.code);
        to.text(2, &self.message);
    }

    fn field(&mut self, number: u64, value: Value<'_>) -> Result<(), Malformed> {
        match number {
            1 => self.code = value.number()?,
            2 => self.message = value.text()?,
            _ => {}
        }
        Ok(())
    }
}

/// An address of a NIC (types.IPAddress).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IpAddress {
    /// 0 for IPv4, 1 for IPv6.
    pub(crate) family: u64,
    pub(crate) address: String,
    /// The length of the prefix.
    pub(crate) mask: String,
}

impl Message for IpAddress {
    fn write(&self, to: &mut Writer) {
        to.number(1, self.family);
        to.text(2, &self.address);
        to.text(3, &self.mask);
    }

    fn field(&mut self, number: u64, value: Value<'_>) -> Result<(), Malformed> {
        match number {
            1 => self.family = value.number()?,
            2 => self.address = value.text()?,
            3 => self.mask = value.text()?,
            _ => {}
        }
        Ok(())
    }
}

/// A NIC (types.Interface).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) device: String,
    pub(crate) name: String,
    pub(crate) addresses: Vec<IpAddress>,
    pub(crate) mtu: u64,
    pub(crate) mac: String,
    /// Where it is plugged in: slots.
    pub(crate) path: String,
    pub(crate) kind: String,
    pub(crate) flags: u64,
}

impl Message for Interface {
    fn write(&self, to: &mut Writer) {
        to.text(1, &self.device);
        to.text(2, &self.name);
        for address in &self.addresses {
            to.bytes(3, &address.encode());
        }
        to.number(4, self.mtu);
        to.text(5, &self.mac);
        to.text(6, &self.path);
        to.text(7, &self.kind);
        to.number(8, self.flags);
    }

    fn field(&mut self, number: u64, value: Value<'_>) -> Result<(), Malformed> {
        match number {
            1 => self.device = value.text()?,
            2 => self.name = value.text()?,
            3 => self.addresses.push(IpAddress::decode(value.bytes()?)?),
            4 => self.mtu = value.number()?,
            5 => self.mac = value.text()?,
            6 => self.path = value.text()?,
            7 => self.kind = value.text()?,
            8 => self.flags = value.number()?,
            _ => {}
        }
        Ok(())
    }
}

/// A route (types.Route).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Route {
    /// Empty for all addresses.
    pub(crate) dest: String,
    pub(crate) gateway: String,
    pub(crate) device: String,
    pub(crate) source: String,
    /// As the kernel has it: 253 for what is on the link.
    pub(crate) scope: u64,
    /// 0 for IPv4, 1 for IPv6.
    pub(crate) family: u64,
    pub(crate) flags: u64,
}

impl Message for Route {
    fn write(&self, to: &mut Writer) {
        to.text(1, &self.dest);
        to.text(2, &self.gateway);
        to.text(3, &self.device);
        to.text(4, &self.source);
        to.number(5, self.scope);
        to.number(6, self.family);
        to.number(7, self.flags);
    }

    fn field(&mut self, number: u64, value: Value<'_>) -> Result<(), Malformed> {
        match number {
            1 => self.dest = value.text()?,
            2 => self.gateway = value.text()?,
            3 => self.device = value.text()?,
            4 => self.source = value.text()?,
            5 => self.scope = value.number()?,
            6 => self.family = value.number()?,
            7 => self.flags = value.number()?,
            _ => {}
        }
        Ok(())
    }
}

/// A message whose field 1 holds messages: agent.Interfaces, agent.Routes, and the requests that hold one of anything
/// (UpdateInterfaceRequest, UpdateRoutesRequest).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct List<T>(pub(in crate::container) Vec<T>);

impl<T: Message> Message for List<T> {
    fn write(&self, to: &mut Writer) {
        for one in &self.0 {
            to.bytes(1, &one.encode());
        }
    }

    fn field(&mut self, number: u64, value: Value<'_>) -> Result<(), Malformed> {
        if number == 1 {
            self.0.push(T::decode(value.bytes()?)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As `protoc --encode=types.Interface` writes it.
    #[test]
    fn an_interface_is_what_protoc_makes_of_it() {
        let interface = Interface {
            name: "eth-test".into(),
            addresses: vec![IpAddress { family: 1, address: "fd00::2".into(), mask: "64".into() }],
            mtu: 1500,
            ..Interface::default()
        };
        let bytes = b"\x12\x08eth-test\x1a\x0f\x08\x01\x12\x07fd00::2\x1a\x0264\x20\xdc\x0b";
        assert_eq!(interface.encode(), bytes);
        assert_eq!(Interface::decode(bytes), Ok(interface));
    }

    #[test]
    fn unknown_fields_are_skipped_and_wrong_ones_refused() {
        // Fields 20 to 23 of all four wire types.
        let strange =
            b"\xa0\x01\x05\xa9\x01\x01\x02\x03\x04\x05\x06\x07\x08\xb2\x01\x02ab\xbd\x01\x01\x02\x03\x04";
        let bytes = [strange.as_slice(), b"\x12\x02lo"].concat();
        assert_eq!(Interface::decode(&bytes).unwrap().name, "lo");
        for wrong in [
            &b"\x10\x05"[..],    // a number for a name
            b"\x12\x05lo",       // shorter than it says
            b"\x22\x02lo",       // a text for an MTU
            b"\x12\x02\xff\xff", // no UTF-8
            b"\x02\x00",         // field 0
            b"\x13",             // a group
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x1a\x02\x12\x05", // within an address
        ] {
            assert_eq!(Interface::decode(wrong), Err(Malformed), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Interface::decode(&bytes);
            let _ = List::<Route>::decode(&bytes);
            let _ = Response::decode(&bytes);
            let _ = Request::decode(&bytes);
        }

        #[test]
        fn what_is_written_is_read(dest in ".{0,20}", gateway in ".{0,20}", scope: u64, family in 0u64..2) {
            let route = Route { dest, gateway, scope, family, ..Route::default() };
            let list = List(vec![route.clone(), route]);
            prop_assert_eq!(List::decode(&list.encode()), Ok(list));
        }
    }
}
