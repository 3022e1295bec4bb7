//! Netlink requests in wire form: many messages in one buffer.

use std::net::IpAddr;

use crate::error::Error;

/// Requests that go to the kernel together, in order, in as few system calls as possible.
///
/// The kernel handles every message of a batch, also after one was refused. Building a batch touches
/// no kernel state; [`crate::socket::Netlink::execute`] sends it.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    starts: Vec<usize>,
    oversized: bool,
}

/// An attribute that holds others and is still open. Must be passed to [`Batch::close`].
#[must_use]
pub struct Nest(usize);

impl Batch {
    /// A batch without requests.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// The number of requests.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there is no request.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Removes every request and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.starts.clear();
        self.oversized = false;
    }

    /// Begins a request of `kind` (`RTM_*`) with the fixed header `body`. `flags` are the `NLM_F_*`
    /// bits besides `NLM_F_REQUEST`; the sender decides where an ACK is asked for.
    pub fn begin(&mut self, kind: u16, flags: u16, body: &[u8]) -> &mut Batch {
        self.finish();
        self.starts.push(self.bytes.len());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]);
        self.bytes.extend_from_slice(body);
        self.pad();
        self.finish();
        self
    }

    /// What was appended since the start, for [`Batch::raw`]: without a request begun, attributes.
    pub(crate) fn into_octets(self) -> Box<[u8]> {
        self.bytes.into()
    }

    /// Adds an attribute to the request begun last.
    pub fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Batch {
        let Ok(len) = u16::try_from(value.len() + ATTR_HEADER) else {
            self.oversized = true;
            return self;
        };
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self.finish();
        self
    }

    /// Adds an attribute with a number in host byte order.
    pub fn attr_u32(&mut self, kind: u16, value: u32) -> &mut Batch {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Adds an attribute with a zero-terminated string.
    pub fn attr_str(&mut self, kind: u16, value: &str) -> &mut Batch {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// Adds an attribute with an address in network byte order.
    pub fn attr_ip(&mut self, kind: u16, value: IpAddr) -> &mut Batch {
        match value {
            IpAddr::V4(v4) => self.attr(kind, &v4.octets()),
            IpAddr::V6(v6) => self.attr(kind, &v6.octets()),
        }
    }

    /// Opens an attribute that holds others.
    pub fn open(&mut self, kind: u16) -> Nest {
        let nest = Nest(self.bytes.len());
        self.attr(kind, &[]);
        nest
    }

    /// Appends bytes that are no attribute, such as a header in front of nested attributes.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Batch {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self.finish();
        self
    }

    /// Closes an attribute opened by [`Batch::open`].
    pub fn close(&mut self, nest: Nest) -> &mut Batch {
        match u16::try_from(self.bytes.len().saturating_sub(nest.0)) {
            Ok(len) => self.put(nest.0, &len.to_ne_bytes()),
            Err(_) => self.oversized = true,
        }
        self
    }

    /// The flags of request `index` with `extra` bits added.
    pub(crate) fn add_flags(&mut self, index: usize, extra: u16) {
        if let Some(&start) = self.starts.get(index)
            && let Some(field) = self.bytes.get(start + 6..start + 8)
        {
            let flags = u16::from_ne_bytes([field[0], field[1]]) | extra;
            self.put(start + 6, &flags.to_ne_bytes());
        }
    }

    /// Numbers the requests `first`, `first + 1` and so on.
    pub(crate) fn number(&mut self, first: u32) {
        for index in 0..self.starts.len() {
            let seq = first.wrapping_add(index as u32);
            self.put(self.starts[index] + 8, &seq.to_ne_bytes());
        }
    }

    /// The bytes of the requests `range`, which must not be empty.
    pub(crate) fn slice(&self, range: std::ops::Range<usize>) -> Result<&[u8], Error> {
        if self.oversized {
            return Err(Error::Unencodable("an attribute is longer than 65,531 bytes"));
        }
        let start = self.starts.get(range.start).copied().unwrap_or(0);
        let end = self.starts.get(range.end).copied().unwrap_or(self.bytes.len());
        self.bytes.get(start..end).ok_or(Error::Unencodable("an empty batch"))
    }

    /// The end of the longest run of requests from `from` that has at most `bytes_max` bytes and
    /// `requests_max` requests, and at least one.
    pub(crate) fn run_end(&self, from: usize, bytes_max: usize, requests_max: usize) -> usize {
        let start = self.starts.get(from).copied().unwrap_or(self.bytes.len());
        let mut end = from + 1;
        while end < self.starts.len() && end - from < requests_max {
            let bytes = self.starts.get(end + 1).copied().unwrap_or(self.bytes.len()) - start;
            if bytes > bytes_max {
                break;
            }
            end += 1;
        }
        end.min(self.starts.len())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Writes the length of the last message into its header.
    fn finish(&mut self) {
        if let Some(&start) = self.starts.last() {
            let len = (self.bytes.len() - start) as u32;
            self.put(start, &len.to_ne_bytes());
        }
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        if let Some(field) = self.bytes.get_mut(at..at + value.len()) {
            field.copy_from_slice(value);
        }
    }
}

/// The attributes in `bytes`: type without flag bits, and value. Stops at the first malformed one.
pub fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes { rest: bytes }
}

/// Iterator of [`attributes`].
#[derive(Clone)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (header, _) = self.rest.split_at_checked(ATTR_HEADER)?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let value = self.rest.get(ATTR_HEADER..len)?;
        self.rest = self.rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// A number in host byte order from an attribute's value.
pub fn read_u32(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

/// A string from an attribute's value, up to its first zero byte.
pub fn read_str(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

/// An address from an attribute's value of 4 or 16 bytes.
pub fn read_ip(value: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Some(IpAddr::from(octets));
    }
    <[u8; 16]>::try_from(value).ok().map(IpAddr::from)
}

const ATTR_HEADER: usize = 4;
const NLA_TYPE_MASK: u16 = 0x3fff;
const NLM_F_REQUEST: u16 = libc::NLM_F_REQUEST as u16;
