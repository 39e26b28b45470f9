//! Bytes taken apart into choices. What is missing at the end reads as zero, so that every input means something.

#![forbid(unsafe_code)]

/// Bytes that have not been used yet.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Up to `len` bytes.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn number<const N: usize>(&mut self) -> [u8; N] {
        let mut number = [0; N];
        let bytes = self.bytes(N);
        number[..bytes.len()].copy_from_slice(bytes);
        number
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        self.number::<1>()[0]
    }

    /// 16 bits.
    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes(self.number())
    }

    /// 32 bits.
    pub fn long(&mut self) -> u32 {
        u32::from_le_bytes(self.number())
    }

    /// 64 bits.
    pub fn quad(&mut self) -> u64 {
        u64::from_le_bytes(self.number())
    }

    /// One of the choices.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.byte()) % of.len()]
    }
}
