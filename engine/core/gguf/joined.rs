//! Tensors of one file beside those of another.

use super::Gguf;

impl Gguf {
    /// The same with those of its tensors alone that `is_wanted` by their names. No data is copied.
    #[must_use]
    pub fn with_only(&self, is_wanted: impl Fn(&str) -> bool) -> Self {
        let mut some = self.clone();
        some.index.retain(&some.data, &is_wanted);
        for part in &mut some.others {
            part.index.retain(&part.data, &is_wanted);
        }
        some
    }

    /// The same with the tensors of `other` behind its own, none of which has the name of one of its own. No data is copied, and of `other`'s
    /// metadata none is taken.
    #[must_use]
    pub fn beside(&self, other: Self) -> Self {
        let mut both = self.clone();
        let Self { others, .. } = &other;
        let others = others.clone();
        both.others.push(Self { others: Vec::new(), ..other });
        both.others.extend(others);
        both
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::GgmlType;
    use crate::gguf::write::Writer;

    #[test]
    fn tensors_of_two_files_are_one_files() {
        let file = |names: &[&str]| {
            let mut writer = Writer::new();
            writer.metadata("general.name", names[0]);
            for (i, name) in names.iter().enumerate() {
                writer.tensor(name, &[1], GgmlType::F32, vec![i as u8; 4]);
            }
            Gguf::from_bytes(writer.to_bytes().into()).unwrap()
        };
        let some = file(&["c", "a", "d"]).with_only(|name| name != "a");
        assert!(some.tensor("a").is_none());
        let both = file(&["a", "b"]).beside(some);
        let names: Vec<_> = both.tensors().map(|tensor| tensor.name()).collect();
        assert_eq!(names, ["a", "b", "c", "d"]);
        let data = |name| both.tensor(name).unwrap().data().unwrap()[0];
        assert_eq!(["a", "b", "c", "d"].map(data), [0, 1, 0, 2]);
        assert_eq!(both.get::<&str>("general.name").unwrap(), Some("a"));
    }
}
