//! One call of systemd's manager, as a D-Bus message, and what it says to it.
//!
//! root speaks with systemd itself, as systemctl(1) does: no bus is between them, so there are no names to ask for, and
//! a machine without dbus-daemon will do. A client for buses is a megabyte, and brings threads; containers are made by a
//! process that has one (fork(2)).
//!
//! Source: D-Bus specification, "Type system" and "Message protocol".

/// A value of a property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// `s`
    Text(String),
    /// `b`
    Flag(bool),
    /// `i`
    I32(i32),
    /// `u`
    U32(u32),
    /// `x`
    I64(i64),
    /// `t`
    U64(u64),
    /// `au`
    Pids(Vec<u32>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Text(_) => "s",
            Self::Flag(_) => "b",
            Self::I32(_) => "i",
            Self::U32(_) => "u",
            Self::I64(_) => "x",
            Self::U64(_) => "t",
            Self::Pids(_) => "au",
        }
    }
}

/// Number of the one call of a connection.
const SERIAL: u32 = 1;

const LITTLE_ENDIAN: u8 = b'l';
const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const PROTOCOL: u8 = 1;

/// Kinds of header fields.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// Writes values as the protocol wants them aligned: each to its size, from the message's begin.
#[derive(Debug, Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.align(8);
        self.0.extend(value.to_le_bytes());
    }

    /// Texts are short of 4 GiB: they are from a configuration, which is bounded.
    fn text(&mut self, value: &str) {
        self.u32(value.len() as u32);
        self.0.extend(value.as_bytes());
        self.byte(0);
    }

    fn signature(&mut self, value: &str) {
        self.byte(value.len() as u8);
        self.0.extend(value.as_bytes());
        self.byte(0);
    }

    /// An array is its length in bytes, without what aligns its first element, and its elements.
    fn array(&mut self, alignment: usize, elements: impl FnOnce(&mut Self)) {
        self.u32(0);
        let length_at = self.0.len() - 4;
        self.align(alignment);
        let begin = self.0.len();
        elements(self);
        let length = (self.0.len() - begin) as u32;
        self.0[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Text(text) => self.text(text),
            Value::Flag(flag) => self.u32(u32::from(*flag)),
            Value::I32(number) => self.u32(number.cast_unsigned()),
            Value::U32(number) => self.u32(*number),
            Value::I64(number) => self.u64(number.cast_unsigned()),
            Value::U64(number) => self.u64(*number),
            Value::Pids(pids) => self.array(4, |to| pids.iter().for_each(|&pid| to.u32(pid))),
        }
    }

    fn field(&mut self, kind: u8, signature: &str, value: &str) {
        self.align(8);
        self.byte(kind);
        self.signature(signature);
        if signature == "g" { self.signature(value) } else { self.text(value) }
    }
}

/// `StartTransientUnit(name, "fail", properties, [])` of `org.freedesktop.systemd1.Manager`
/// (org.freedesktop.systemd1(5)).
pub(super) fn start_transient_unit(unit: &str, properties: &[(String, Value)]) -> Vec<u8> {
    let mut body = Writer::default();
    body.text(unit);
    body.text("fail");
    body.array(8, |to| {
        for (name, value) in properties {
            to.align(8);
            to.text(name);
            to.variant(value);
        }
    });
    // Units that come with it: none.
    body.array(8, |_| ());
    let mut message = Writer(vec![LITTLE_ENDIAN, METHOD_CALL, 0, PROTOCOL]);
    message.u32(body.0.len() as u32);
    message.u32(SERIAL);
    message.array(8, |to| {
        to.field(PATH, "o", "/org/freedesktop/systemd1");
        to.field(INTERFACE, "s", "org.freedesktop.systemd1.Manager");
        to.field(MEMBER, "s", "StartTransientUnit");
        to.field(DESTINATION, "s", "org.freedesktop.systemd1");
        to.field(SIGNATURE, "g", "ssa(sv)a(sa(sv))");
    });
    message.align(8);
    message.0.extend(body.0);
    message.0
}

/// What is at the begin of each message: its kind and the lengths of what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    kind: u8,
    /// Bytes of the header fields.
    fields: usize,
    /// Bytes of all that follows.
    pub rest: usize,
}

/// Bytes of a [`Head`].
pub(super) const HEAD: usize = 16;

/// Longest message that is read, in bytes. Signals name a unit and a job; an answer is a path or a sentence.
const MAX_MESSAGE: usize = 256 * 1024;

impl Head {
    /// Reads it; `None`: this is none, or of a message that is too long.
    pub fn parse(bytes: &[u8; HEAD]) -> Option<Self> {
        let number = |at: usize| {
            let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
            usize::try_from(u32::from_le_bytes(bytes)).ok()
        };
        let (body, fields) = (number(4)?, number(12)?);
        let rest = fields.checked_next_multiple_of(8)?.checked_add(body)?;
        (bytes[0] == LITTLE_ENDIAN && rest <= MAX_MESSAGE).then_some(Self { kind: bytes[1], fields, rest })
    }

    /// What a message says to our call: `None`, nothing (it is a signal).
    pub fn answer(&self, rest: &[u8]) -> Option<Result<(), Refusal>> {
        let mut fields = Reader { bytes: rest.get(..self.fields)?, at: 0 };
        let (mut replies_to, mut name) = (None, String::new());
        while fields.at < fields.bytes.len() {
            fields.align(8);
            let (kind, signature) = (fields.byte()?, fields.signature()?);
            match (kind, signature) {
                (REPLY_SERIAL, "u") => replies_to = Some(fields.u32()?),
                (ERROR_NAME, "s") => name = fields.text()?.to_owned(),
                (_, "s" | "o") => drop(fields.text()?),
                (_, "g") => drop(fields.signature()?),
                (_, "u") => drop(fields.u32()?),
                _ => return None,
            }
        }
        if replies_to != Some(SERIAL) {
            return None;
        }
        match self.kind {
            METHOD_RETURN => Some(Ok(())),
            ERROR => {
                let body = rest.get(self.fields.next_multiple_of(8)..)?;
                let reason = Reader { bytes: body, at: 0 }.text().map(crate::untrusted::one_line);
                Some(Err(Refusal { reason: reason.unwrap_or_else(|| name.clone()), name }))
            }
            _ => None,
        }
    }
}

/// Why systemd does not do it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Its name for it.
    pub name: String,
    /// A sentence.
    pub reason: String,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u32(&mut self) -> Option<u32> {
        self.align(4);
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.u32()?;
        let text = std::str::from_utf8(self.take(usize::try_from(length).ok()?)?).ok()?;
        self.byte().map(|_| text)
    }

    fn signature(&mut self) -> Option<&'a str> {
        let length = self.byte()?;
        let text = std::str::from_utf8(self.take(length.into())?).ok()?;
        self.byte().map(|_| text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_call_is_written_as_the_protocol_has_it() {
        let call = start_transient_unit("a.scope", &[("PIDs".to_owned(), Value::Pids(vec![7]))]);
        assert_eq!(&call[..4], b"l\x01\x00\x01");
        let head = Head::parse(call[..HEAD].try_into().expect("a head")).expect("it is one");
        assert_eq!(head.rest, call.len() - HEAD);
        let body = &call[HEAD + head.fields.next_multiple_of(8)..];
        let wanted = [
            &b"\x07\0\0\0a.scope\0"[..],
            b"\x04\0\0\0fail\0\0\0\0",
            b"\x18\0\0\0\0\0\0\0",
            b"\x04\0\0\0PIDs\0\x02au\0\0\0\0\x04\0\0\0\x07\0\0\0",
            b"\0\0\0\0\0\0\0\0",
        ];
        assert_eq!(body, wanted.concat());
    }

    fn message(kind: u8, fields: impl FnOnce(&mut Writer), body: &[u8]) -> (Head, Vec<u8>) {
        let mut writer = Writer(vec![LITTLE_ENDIAN, kind, 0, PROTOCOL]);
        writer.u32(body.len() as u32);
        writer.u32(99);
        writer.array(8, fields);
        writer.align(8);
        writer.0.extend(body);
        let head = Head::parse(writer.0[..HEAD].try_into().expect("a head")).expect("it is one");
        (head, writer.0[HEAD..].to_vec())
    }

    fn serial(to: &mut Writer, serial: u32) {
        to.align(8);
        to.byte(REPLY_SERIAL);
        to.signature("u");
        to.u32(serial);
    }

    #[test]
    fn an_answer_is_told_from_a_refusal_and_from_signals() {
        let (head, rest) = message(METHOD_RETURN, |to| serial(to, SERIAL), b"");
        assert_eq!(head.answer(&rest), Some(Ok(())));
        let (head, rest) = message(METHOD_RETURN, |to| serial(to, 5), b"");
        assert_eq!(head.answer(&rest), None, "it is about another call");
        let (head, rest) = message(4, |to| to.field(MEMBER, "s", "JobNew"), b"");
        assert_eq!(head.answer(&rest), None, "it is a signal");
        let mut body = Writer::default();
        body.text("Unit a.scope was already loaded.");
        let fields = |to: &mut Writer| {
            to.field(ERROR_NAME, "s", "org.freedesktop.systemd1.UnitExists");
            serial(to, SERIAL);
        };
        let (head, rest) = message(ERROR, fields, &body.0);
        let refusal = Refusal {
            name: "org.freedesktop.systemd1.UnitExists".to_owned(),
            reason: "Unit a.scope was already loaded.".to_owned(),
        };
        assert_eq!(head.answer(&rest), Some(Err(refusal)));
    }

    proptest! {
        #[test]
        fn no_message_makes_it_panic(head in any::<[u8; HEAD]>(), rest in proptest::collection::vec(any::<u8>(), 0..200)) {
            for fields in 0..200 {
                let mut head = head;
                (head[0], head[1]) = (LITTLE_ENDIAN, head[1] % 5);
                head[4..8].copy_from_slice(&0_u32.to_le_bytes());
                head[12..16].copy_from_slice(&(fields as u32).to_le_bytes());
                let head = Head::parse(&head).expect("short enough");
                let _ = head.answer(&rest);
            }
        }
    }
}
