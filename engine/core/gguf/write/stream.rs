//! A file whose tensors are not all in memory.

use super::super::types::GgmlType;
use super::Value;
use std::io::{self, Write};

/// What stands before the data of tensors.
#[derive(Clone, Debug)]
pub struct Header {
    alignment: u32,
    metadata: Vec<(String, Value)>,
    /// Of each its name, dimensions as in the file, type and bytes.
    tensors: Vec<(String, Vec<u64>, GgmlType, u64)>,
}

impl Header {
    /// A file without tensors; if it is to have another `alignment` than [`DEFAULT_ALIGNMENT`](super::super::DEFAULT_ALIGNMENT), the
    /// metadata say so.
    ///
    /// # Panics
    /// If `alignment` is 0.
    pub fn new(alignment: u32, metadata: Vec<(String, Value)>) -> Self {
        assert!(alignment > 0, "an alignment of tensors");
        Self { alignment, metadata, tensors: Vec::new() }
    }

    /// Adds a tensor of row-major shape `shape`, whose data has `num_bytes`.
    pub fn tensor(&mut self, name: &str, shape: &[u64], ggml_type: GgmlType, num_bytes: u64) {
        self.tensors.push((name.to_owned(), shape.iter().rev().copied().collect(), ggml_type, num_bytes));
    }

    /// Bytes of the whole file.
    pub fn file_size(&self) -> u64 {
        let data = self.tensors.iter().map(|tensor| tensor.3.next_multiple_of(self.alignment.into()));
        self.to_bytes().len() as u64 + data.sum::<u64>()
    }

    fn to_bytes(&self) -> Vec<u8> {
        let tensors =
            self.tensors.iter().map(|(name, ne, ggml_type, bytes)| (&name[..], &ne[..], *ggml_type, *bytes));
        super::header(3, self.alignment, &self.metadata, tensors)
    }
}

/// Writes the data of tensors behind a header, in any pieces, and fills in what the alignment leaves open.
pub struct StreamWriter<'a> {
    out: &'a mut dyn Write,
    alignment: u64,
    /// Bytes of each tensor.
    sizes: std::vec::IntoIter<u64>,
    /// Bytes of the present tensor that are still to come, and those that it has.
    missing: u64,
    size: u64,
}

impl<'a> StreamWriter<'a> {
    /// Writes the header.
    ///
    /// # Errors
    /// What `out` says; likewise below.
    pub fn new(out: &'a mut dyn Write, header: &Header) -> io::Result<Self> {
        out.write_all(&header.to_bytes())?;
        let sizes: Vec<u64> = header.tensors.iter().map(|tensor| tensor.3).collect();
        let mut writer =
            Self { out, alignment: header.alignment.into(), sizes: sizes.into_iter(), missing: 0, size: 0 };
        writer.next_tensor()?;
        Ok(writer)
    }

    /// Goes to the next tensor that has data, if all of the present one is there.
    fn next_tensor(&mut self) -> io::Result<()> {
        while self.missing == 0 {
            let padding = self.size.next_multiple_of(self.alignment) - self.size;
            self.out.write_all(&vec![0; padding as usize])?;
            (self.size, self.missing) = (0, 0);
            let Some(size) = self.sizes.next() else { break };
            (self.size, self.missing) = (size, size);
        }
        Ok(())
    }

    /// The next bytes of the present tensor.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if they are more than it has.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let more = || io::Error::new(io::ErrorKind::InvalidInput, "more data than the header says");
        self.missing = self.missing.checked_sub(bytes.len() as u64).ok_or_else(more)?;
        self.out.write_all(bytes)?;
        self.next_tensor()
    }

    /// To be called behind the last tensor.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if data is missing.
    pub fn finish(self) -> io::Result<()> {
        if self.missing > 0 || self.sizes.len() > 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "less data than the header says"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Writer;
    use super::*;

    #[test]
    fn a_file_in_pieces_is_that_of_memory() {
        let mut whole = Writer::new();
        whole.metadata("a", 1_u32).tensor("x", &[3, 2], GgmlType::F32, vec![1; 24]);
        whole.tensor("nothing", &[0], GgmlType::F32, Vec::new()).tensor(
            "y",
            &[33],
            GgmlType(24),
            vec![2; 33],
        );
        let mut header = Header::new(32, vec![("a".to_owned(), 1_u32.into())]);
        header.tensor("x", &[3, 2], GgmlType::F32, 24);
        header.tensor("nothing", &[0], GgmlType::F32, 0);
        header.tensor("y", &[33], GgmlType(24), 33);

        let mut out = Vec::new();
        let mut writer = StreamWriter::new(&mut out, &header).unwrap();
        for bytes in [&[1; 10][..], &[1; 14], &[2; 33]] {
            writer.write(bytes).unwrap();
        }
        assert!(writer.write(&[0]).is_err(), "too much");
        writer.finish().unwrap();
        assert_eq!((&out, out.len() as u64), (&whole.to_bytes(), header.file_size()));

        let mut out = Vec::new();
        let mut writer = StreamWriter::new(&mut out, &header).unwrap();
        writer.write(&[1; 24]).unwrap();
        assert!(writer.finish().is_err(), "too little");
    }
}
