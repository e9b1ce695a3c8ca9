//! Writes a new variant of an operation: a copy of one that is there, under another name.
//!
//! Kernels follow conventions that this relies on: what belongs to the variant `plain` alone, and nothing else, has a word
//! `plain` in its name or mentions such a name, in `gpu-kernels/src/<op>` and in `engine/cuda/`. It is copied with what it
//! needs of the private items around it, `plain` replaced by the new name. Both copies are found through syn and cut out
//! of the text, so that comments stay.

use super::source::Checkout;
use crate::error::{Error, Result};
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use quote::ToTokens;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use syn::spanned::Spanned;

/// What [`plan`] has worked out: the new file, and the changed texts of those that register it.
#[derive(Debug)]
pub struct NewVariant {
    pub op: String,
    pub name: String,
    /// The kernels, in a file of their own.
    pub kernels: (PathBuf, String),
    /// The operation's kernel file, with a line more.
    pub module: (PathBuf, String),
    /// The launch wrapper, with an entry more in its table.
    pub wrapper: (PathBuf, String),
}

/// Works out the variant `name` of `op`, a copy of `from`. Nothing is written.
///
/// # Errors
/// [`Error::Request`] if the name will not do or is taken, or the files do not have what is to be copied; [`Error::Io`] if
/// they cannot be read.
pub fn plan(checkout: &Checkout, op: &str, name: &str, from: &str) -> Result<NewVariant> {
    check_name(name)?;
    let wrapper = Wrapper::find(checkout, op)?;
    if wrapper.names.iter().any(|known| known == name) {
        return Err(Error::Request(format!("{op} has a variant {name} already")));
    }
    let files = checkout.kernel_files(op)?;
    let root = &files[0];
    let folder = checkout.path(format!("gpu-kernels/src/{op}"));
    let target = folder.join(format!("{name}.rs"));
    if target.exists() {
        return Err(Error::Request(format!(
            "{} exists already; nothing was written",
            checkout.short(&target)
        )));
    }
    let rename = Rename { op, from, to: name };
    let launched = wrapper.kernels(&rename)?;
    if launched.is_empty() {
        return Err(Error::Request(format!(
            "{op}={from} launches no kernel that is named after it, so there is nothing to copy"
        )));
    }
    let mut kernels = None;
    for path in &files {
        let source = Source::read(path)?;
        if let Some(copy) = kernel_copy(&source, &rename, &launched) {
            kernels = Some(copy);
            break;
        }
    }
    let kernels = kernels.ok_or_else(|| {
        let names: Vec<&str> = launched.iter().map(String::as_str).collect();
        Error::Request(format!("no file of gpu-kernels/src names all of {}", names.join(", ")))
    })?;
    let module = Source::read(root)?.with_module(name);
    let wrapper = (wrapper.source.path.clone(), wrapper.with_variant(&rename)?);
    let new = NewVariant {
        op: op.into(),
        name: name.into(),
        kernels: (target, kernels),
        module: (root.clone(), module),
        wrapper,
    };
    for (path, text) in [&new.kernels, &new.module, &new.wrapper] {
        syn::parse_file(text).map_err(|error| {
            Error::Request(format!(
                "{}: the copy of {from} would not be Rust ({error}); nothing was written",
                checkout.short(path)
            ))
        })?;
    }
    Ok(new)
}

impl NewVariant {
    /// Writes all three files, and formats them where rustfmt is installed.
    ///
    /// # Errors
    /// [`Error::Io`]; the new file is never written over another one.
    pub fn write(&self) -> Result<()> {
        let (target, text) = &self.kernels;
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| Error::io(path, error)
        };
        if let Some(folder) = target.parent() {
            std::fs::create_dir_all(folder).map_err(failed(folder))?;
        }
        let mut file = std::fs::File::create_new(target).map_err(failed(target))?;
        std::io::Write::write_all(&mut file, text.as_bytes()).map_err(failed(target))?;
        for (path, text) in [&self.module, &self.wrapper] {
            std::fs::write(path, text).map_err(failed(path))?;
        }
        let mut rustfmt = std::process::Command::new("rustfmt");
        rustfmt.args(["--edition", "2024"]).arg(&self.module.0).arg(&self.wrapper.0);
        if !rustfmt.output().is_ok_and(|output| output.status.success()) {
            tracing::info!("rustfmt could not be run; the new code is as it was copied");
        }
        Ok(())
    }
}

/// A variant's name is the last part of its kernels' names and the name of their module.
fn check_name(name: &str) -> Result<()> {
    let well_formed = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !name.ends_with('_')
        && !name.contains("__");
    let is_word = syn::parse_str::<syn::Ident>(name).is_ok();
    if !well_formed || !is_word {
        return Err(Error::Request(format!(
            "a variant's name is of a to z, 0 to 9 and _, begins with a letter, and is no word of Rust; found {name:?}"
        )));
    }
    if name.split('_').any(|word| ["f32", "f16", "bf16", "u32"].contains(&word)) {
        return Err(Error::Request(format!(
            "{name}: kernels are named op_dtype_variant, so a variant's name has no dtype in it"
        )));
    }
    Ok(())
}

/// From one variant's names to another's.
struct Rename<'a> {
    op: &'a str,
    from: &'a str,
    to: &'a str,
}

impl Rename<'_> {
    /// An identifier with the variant's name in it, under the new name: `plain`, `rms_norm_f32_plain`, `PLAIN_KERNELS`.
    fn word(&self, word: &str) -> String {
        let lower = replace_part(word, self.from, self.to);
        replace_part(&lower, &self.from.to_uppercase(), &self.to.to_uppercase())
    }

    /// Whether an identifier is the name of a kernel of the variant.
    fn is_kernel(&self, word: &str) -> bool {
        word.strip_prefix(self.op).is_some_and(|rest| rest.starts_with('_')) && self.word(word) != word
    }

    /// `text` with the name replaced in what is copied with it: kernels, and what is `defined` in the copy.
    /// Other identifiers may have the same word in them and mean something else.
    fn text(&self, text: &str, defined: &BTreeSet<String>) -> String {
        let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
        // The second half of a pattern of kernel names: `op_*_plain`.
        let is_end_of_pattern = |word: &str| word.starts_with('_');
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while !rest.is_empty() {
            let end = rest.find(|c| !part_of_word(c)).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            // A method or an item of another module may have the same name.
            let is_qualified = out.ends_with("::") || out.ends_with('.');
            let is_copied =
                self.is_kernel(word) || is_end_of_pattern(word) || (defined.contains(word) && !is_qualified);
            out.push_str(&if is_copied { self.word(word) } else { word.to_owned() });
            let end = after.find(part_of_word).unwrap_or(after.len());
            out.push_str(&after[..end]);
            rest = &after[end..];
        }
        out
    }
}

/// `word` with the underscored part `from` replaced by `to`.
fn replace_part(word: &str, from: &str, to: &str) -> String {
    let padded = format!("_{word}_").replace(&format!("_{from}_"), &format!("_{to}_"));
    padded[1..padded.len() - 1].to_owned()
}

/// A file and its syntax tree, whose spans are places in the text.
struct Source {
    path: PathBuf,
    text: String,
    tree: syn::File,
}

impl Source {
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| Error::io(path, error))?;
        let tree = syn::parse_file(&text)
            .map_err(|error| Error::Request(format!("{} cannot be read as Rust: {error}", path.display())))?;
        Ok(Self { path: path.to_owned(), text, tree })
    }

    /// The module of a file of `gpu-kernels/src`, as `crate::rms_norm` or `crate::attention::prefill`.
    fn module(&self) -> String {
        let mut names: Vec<String> = Vec::new();
        for part in self.path.with_extension("").iter().rev().map(|part| part.to_string_lossy()) {
            match &*part {
                "src" => break,
                "mod" => {}
                name => names.push(name.to_owned()),
            }
        }
        names.push("crate".into());
        names.reverse();
        names.join("::")
    }

    /// Where an item stands, with the comment lines right above it.
    fn range(&self, item: &syn::Item) -> Range<usize> {
        let Range { mut start, end } = item.span().byte_range();
        while let Some(before) = self.text[..start].trim_end_matches(' ').strip_suffix('\n') {
            let line = before.rfind('\n').map_or(0, |at| at + 1);
            let comment = before[line..].trim_start();
            if !comment.starts_with("//") || comment.starts_with("//!") {
                break;
            }
            start = line;
        }
        start..end
    }

    /// Behind the last item for which `matches` is true, which the file's first lines have at least one of.
    fn after_last(&self, matches: impl Fn(&syn::Item) -> bool) -> usize {
        let last = self.tree.items.iter().rev().find(|item| matches(item));
        last.map_or_else(
            || self.tree.items.first().map_or(self.text.len(), |item| self.range(item).start),
            |item| self.range(item).end,
        )
    }

    /// The text with `pub mod name;` among its modules, or behind its imports.
    fn with_module(&self, name: &str) -> String {
        let is_module = |item: &syn::Item| matches!(item, syn::Item::Mod(module) if module.content.is_none());
        let is_import = |item: &syn::Item| matches!(item, syn::Item::Use(_));
        let has_modules = self.tree.items.iter().any(is_module);
        let at = if has_modules { self.after_last(is_module) } else { self.after_last(is_import) };
        let gap = if has_modules { "\n" } else { "\n\n" };
        format!("{}{gap}pub mod {name};{}", &self.text[..at], &self.text[at..])
    }
}

/// Identifiers of an item that are code: not those in doc comments and strings.
fn identifiers(tokens: TokenStream, into: &mut BTreeSet<String>) {
    let mut hash = false;
    for token in tokens {
        let is_attribute = hash;
        hash = matches!(&token, TokenTree::Punct(punct) if punct.as_char() == '#');
        match token {
            TokenTree::Ident(ident) => {
                into.insert(ident.to_string());
            }
            TokenTree::Group(group) => {
                let starts_with_doc = || {
                    let first = group.stream().into_iter().next();
                    matches!(first, Some(TokenTree::Ident(ident)) if ident == "doc")
                };
                if !(is_attribute && group.delimiter() == Delimiter::Bracket && starts_with_doc()) {
                    identifiers(group.stream(), into);
                }
            }
            _ => {}
        }
    }
}

fn identifiers_of(item: &impl ToTokens) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    identifiers(item.to_token_stream(), &mut found);
    found
}

/// What other items call an item, and whether they can do so from other modules.
fn name_of(item: &syn::Item) -> Option<(String, bool)> {
    let is_public = |vis: &syn::Visibility| !matches!(vis, syn::Visibility::Inherited);
    let (ident, public) = match item {
        syn::Item::Fn(item) => (&item.sig.ident, is_public(&item.vis)),
        syn::Item::Const(item) => (&item.ident, is_public(&item.vis)),
        syn::Item::Static(item) => (&item.ident, is_public(&item.vis)),
        syn::Item::Struct(item) => (&item.ident, is_public(&item.vis)),
        syn::Item::Enum(item) => (&item.ident, is_public(&item.vis)),
        syn::Item::Trait(item) => (&item.ident, is_public(&item.vis)),
        syn::Item::Type(item) => (&item.ident, is_public(&item.vis)),
        syn::Item::Macro(item) => (item.ident.as_ref()?, false),
        _ => return None,
    };
    Some((ident.to_string(), public))
}

/// The name of the type that an `impl` is for, and of its trait.
fn implements(item: &syn::ItemImpl) -> (Option<String>, Option<String>) {
    let of_type = match &*item.self_ty {
        syn::Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()),
        _ => None,
    };
    let last = item.trait_.as_ref().and_then(|(_, path, _)| path.segments.last());
    (of_type, last.map(|segment| segment.ident.to_string()))
}

/// The text of a file with a copy of the kernels `launched` by a variant; `None` if `source` does not have them.
fn kernel_copy(source: &Source, rename: &Rename, launched: &BTreeSet<String>) -> Option<String> {
    let items = &source.tree.items;
    let mentions: Vec<BTreeSet<String>> = items.iter().map(identifiers_of).collect();
    let mut copied: BTreeSet<usize> =
        (0..items.len()).filter(|&i| mentions[i].iter().any(|name| launched.contains(name))).collect();
    let all: BTreeSet<&String> = copied.iter().flat_map(|&i| &mentions[i]).collect();
    if !launched.iter().all(|name| all.contains(name)) {
        return None;
    }
    // Private items come along; public ones are imported.
    let mut imported = BTreeSet::new();
    let mut grown = true;
    while grown {
        let names: BTreeSet<&String> = copied.iter().flat_map(|&i| &mentions[i]).collect();
        let here: BTreeSet<String> =
            copied.iter().filter_map(|&i| name_of(&items[i])).map(|(name, _)| name).collect();
        let mut more = BTreeSet::new();
        for (i, item) in items.iter().enumerate().filter(|(i, _)| !copied.contains(i)) {
            match (item, name_of(item)) {
                (syn::Item::Impl(item), _) => {
                    let (of_type, of_trait) = implements(item);
                    let local =
                        |name: &String| items.iter().filter_map(name_of).any(|(other, _)| other == *name);
                    let known =
                        |name: Option<String>| name.is_none_or(|name| !local(&name) || here.contains(&name));
                    let own = of_type.as_ref().is_some_and(|name| here.contains(name));
                    if own && known(of_trait) {
                        more.insert(i);
                    }
                }
                (_, Some((name, false))) if names.contains(&name) => {
                    more.insert(i);
                }
                (_, Some((name, true))) if names.contains(&name) => {
                    imported.insert(name);
                }
                _ => {}
            }
        }
        grown = !more.is_empty();
        copied.extend(more);
    }

    let Rename { op, from, to } = rename;
    let defined = copied.iter().filter_map(|&i| name_of(&items[i])).map(|(name, _)| name).collect();
    let mut out = format!(
        "//! {op}, variant `{to}`: a copy of `{from}`. Say here what it does otherwise, why, and what that brought.\n\n"
    );
    let used: BTreeSet<&String> = copied.iter().flat_map(|&i| &mentions[i]).collect();
    for item in items {
        let syn::Item::Use(import) = item else { continue };
        let names = identifiers_of(&import.tree);
        let is_glob = import.tree.to_token_stream().to_string().ends_with('*');
        if is_glob || names.iter().any(|name| used.contains(name)) {
            let text = &source.text[source.range(item)];
            // The copy lies one folder deeper than a file of the crate's first level.
            let is_deep = source.module().matches("::").count() > 1;
            out.push_str(&if is_deep { text.to_owned() } else { text.replace("super::", "crate::") });
            out.push('\n');
        }
    }
    if !imported.is_empty() {
        let names: Vec<&str> = imported.iter().map(String::as_str).collect();
        out.push_str(&format!("use {}::{{{}}};\n", source.module(), names.join(", ")));
    }
    for &i in &copied {
        out.push('\n');
        out.push_str(&rename.text(&source.text[source.range(&items[i])], &defined));
        out.push('\n');
    }
    Some(out)
}

/// The file of `engine/cuda` that launches an operation.
struct Wrapper {
    source: Source,
    /// Index of the table of variants among the items.
    table: usize,
    /// Names of the variants.
    names: Vec<String>,
}

impl Wrapper {
    fn find(checkout: &Checkout, op: &str) -> Result<Self> {
        let mut known = Vec::new();
        for path in checkout.wrapper_files()? {
            let text = std::fs::read_to_string(&path).map_err(|error| Error::io(&path, error))?;
            if !text.contains("VARIANTS") {
                continue;
            }
            let source = Source::read(&path)?;
            for (constant, value) in source.tree.items.iter().filter_map(string_constant) {
                let prefix = if constant == "OP" { String::new() } else { format!("{constant}_") };
                let name = format!("{prefix}VARIANTS");
                let is_table =
                    |item: &syn::Item| matches!(item, syn::Item::Const(item) if item.ident == name);
                let Some(table) = source.tree.items.iter().position(is_table) else { continue };
                // Names alone, as of the ways to run a step, are no kernels.
                let is_of_variants = matches!(&source.tree.items[table], syn::Item::Const(item)
                    if item.ty.to_token_stream().to_string().contains("Variant"));
                if !is_of_variants {
                    continue;
                }
                if value == op {
                    let mut wrapper = Self { source, table, names: Vec::new() };
                    wrapper.names = wrapper.elements()?.iter().map(|(name, _)| name.clone()).collect();
                    return Ok(wrapper);
                }
                known.push(value);
            }
        }
        Err(Error::Request(format!(
            "{op} has no table of variants in engine/cuda; these have one: {}",
            known.join(", ")
        )))
    }

    fn table(&self) -> Result<(&syn::ItemConst, &syn::ExprArray)> {
        if let syn::Item::Const(item) = &self.source.tree.items[self.table]
            && let syn::Expr::Array(array) = &*item.expr
        {
            return Ok((item, array));
        }
        Err(Error::Request(format!(
            "{}: expected the table of variants to be an array of `Variant {{ name: …, … }}`",
            self.source.path.display()
        )))
    }

    /// The entries of the table: names, and what they are.
    fn elements(&self) -> Result<Vec<(String, &syn::ExprStruct)>> {
        let (_, array) = self.table()?;
        let entries = array.elems.iter().filter_map(|expr| {
            let syn::Expr::Struct(entry) = expr else { return None };
            Some((self.text_of(name_field(entry)?)?, entry))
        });
        Ok(entries.collect())
    }

    /// The value of a string, or of a constant that is one.
    fn text_of(&self, expr: &syn::Expr) -> Option<String> {
        if let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) = expr {
            return Some(text.value());
        }
        let constant = expr.to_token_stream().to_string();
        let mut constants = self.source.tree.items.iter().filter_map(string_constant);
        constants.find(|(name, _)| *name == constant).map(|(_, value)| value)
    }

    /// The entry of a variant.
    fn entry(&self, rename: &Rename) -> Result<&syn::ExprStruct> {
        let elements = self.elements()?;
        let found = elements.iter().find(|(name, _)| name == rename.from).map(|(_, entry)| *entry);
        found.ok_or_else(|| {
            let (op, from, known) = (rename.op, rename.from, self.names.join(", "));
            Error::Request(format!("{op} has no variant {from}; the variants are {known}"))
        })
    }

    /// Functions and constants that are the variant's own: the entry uses them, and they have its name.
    fn helpers(&self, rename: &Rename) -> Result<Vec<(String, &syn::Item)>> {
        let used = identifiers_of(self.entry(rename)?);
        let is_own = |name: &String| used.contains(name) && rename.word(name) != *name;
        let items = self.source.tree.items.iter().filter(|item| string_constant(item).is_none());
        Ok(items.filter_map(|item| Some((name_of(item)?.0, item))).filter(|(name, _)| is_own(name)).collect())
    }

    /// The kernels that the variant launches and that are named after it.
    fn kernels(&self, rename: &Rename) -> Result<BTreeSet<String>> {
        let mut names = identifiers_of(self.entry(rename)?);
        for (_, item) in self.helpers(rename)? {
            names.extend(identifiers_of(item));
        }
        names.retain(|name| rename.is_kernel(name));
        Ok(names)
    }

    /// The file's text with a copy of the entry behind it, and copies of the functions and constants that are its own.
    fn with_variant(&self, rename: &Rename) -> Result<String> {
        let text = &self.source.text;
        let (item, array) = self.table()?;
        let entry = self.entry(rename)?;
        let helpers = self.helpers(rename)?;
        let defined = helpers.iter().map(|(name, _)| name.clone()).collect();
        let mut edits: Vec<(Range<usize>, String)> = Vec::new();

        // The name may be a constant, which is not the copy's.
        let range = entry.span().byte_range();
        let name = name_field(entry).map_or(range.clone(), |name| name.span().byte_range());
        let before = rename.text(&text[range.start..name.start], &defined);
        let after = rename.text(&text[name.end..range.end], &defined);
        let copy = format!("{before}\"{}\"{after}", rename.to);
        // Behind the one that is copied: a table's last computes every case, so nothing changes where none is asked for.
        let rest = &text[range.end..];
        let comma = rest.find(|c: char| !c.is_whitespace()).filter(|&at| rest[at..].starts_with(','));
        let end = comma.map_or(range.end, |at| range.end + at + 1);
        let separator = if comma.is_some() { "" } else { "," };
        edits.push((end..end, format!("{separator}\n    {copy},")));

        // `[Variant<…>; 3]`: one more.
        if let syn::Type::Array(of) = &*item.ty {
            edits.push((of.len.span().byte_range(), (array.elems.len() + 1).to_string()));
        }
        for (_, item) in helpers {
            let range = self.source.range(item);
            edits.push((range.end..range.end, format!("\n\n{}", rename.text(&text[range], &defined))));
        }

        let is_import = |item: &syn::Item| {
            let syn::Item::Use(import) = item else { return false };
            import.tree.to_token_stream().to_string().starts_with("gpu_kernels")
        };
        let at = self.source.after_last(is_import);
        edits.push((at..at, format!("\nuse gpu_kernels::{}::{}::*;", rename.op, rename.to)));

        edits.sort_by_key(|(range, _)| std::cmp::Reverse(range.start));
        let mut out = text.clone();
        for (range, new) in edits {
            out.replace_range(range, &new);
        }
        Ok(out)
    }
}

/// `const NAME: &str = "value";`
fn string_constant(item: &syn::Item) -> Option<(String, String)> {
    let syn::Item::Const(item) = item else { return None };
    let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(value), .. }) = &*item.expr else { return None };
    Some((item.ident.to_string(), value.value()))
}

fn name_field(entry: &syn::ExprStruct) -> Option<&syn::Expr> {
    let named =
        |field: &&syn::FieldValue| matches!(&field.member, syn::Member::Named(name) if name == "name");
    entry.fields.iter().find(named).map(|field| &field.expr)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda;

    fn checkout() -> Checkout {
        Checkout::around(lab::source::built_in()).unwrap()
    }

    #[test]
    fn names_are_replaced_in_what_is_copied_alone() {
        let rename = Rename { op: "attention", from: "plain", to: "v2" };
        let defined = BTreeSet::from(["PLAIN_KERNELS", "launch_plain", "plain"].map(str::to_owned));
        for (text, expected) in [
            ("plain(x)", "v2(x)"),
            ("attention_prefill_f32_plain_h64", "attention_prefill_f32_v2_h64"),
            ("attention_prefill_*_plain_h64", "attention_prefill_*_v2_h64"),
            ("&PLAIN_KERNELS, launch_plain", "&V2_KERNELS, launch_v2"),
            ("explain plainly, the plain one", "explain plainly, the v2 one"),
            ("super::plain_pages", "super::plain_pages"),
            ("E::plain(x).plain()", "E::plain(x).plain()"),
            ("…plain…", "…v2…"),
        ] {
            assert_eq!(rename.text(text, &defined), expected);
        }
    }

    #[test]
    fn every_operation_with_variants_can_have_another() {
        for (op, variants) in cuda::kernels() {
            if !variants.contains(&"plain") {
                assert!(plan(&checkout(), op, "v2", "plain").is_err(), "{op} has no kernels of its own");
                continue;
            }
            let new = plan(&checkout(), op, "v2", "plain").unwrap();
            let kernels = syn::parse_file(&new.kernels.1).unwrap();
            assert!(!kernels.items.is_empty());
            assert!(
                !new.kernels.1.contains("plain(") && !new.kernels.1.contains("_plain"),
                "{}",
                new.kernels.1
            );
            assert!(new.module.1.contains("pub mod v2;"), "{op}");
            let text = &new.wrapper.1;
            assert!(
                text.contains("name: \"v2\"") && text.contains(&format!("use gpu_kernels::{op}::v2::*;"))
            );
            assert!(text.contains(&format!("{}]", variants.len() + 1)), "the table is longer by one: {text}");
            // Every kernel of the wrapper's copy is in the new file, or made by a macro of it from a list of names.
            let copied = |word: &&str| word.starts_with(op) && word.contains("_v2") && !word.contains('*');
            let words = text.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '*'));
            for kernel in words.filter(copied) {
                assert!(new.kernels.1.contains(kernel), "{kernel} is not in\n{}", new.kernels.1);
            }
        }
    }

    #[test]
    fn another_variant_than_the_plain_one_can_be_the_start() {
        for (op, from) in [("rms_norm", "vec4"), ("add", "vec4"), ("matmul", "gemv"), ("attention", "tiled")]
        {
            let new = plan(&checkout(), op, "wide", from).unwrap();
            let kernels = &new.kernels.1;
            assert!(kernels.contains("f32_wide") || kernels.contains("f16_wide"), "{kernels}");
            assert!(!kernels.contains(&format!("f16_{from}")), "{kernels}");
            assert!(new.wrapper.1.contains("name: \"wide\""));
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_reason() {
        let refused =
            |op: &str, name: &str, from: &str| plan(&checkout(), op, name, from).unwrap_err().to_string();
        assert!(refused("norm", "v2", "plain").contains("rms_norm"));
        assert!(refused("rms_norm", "vec4", "plain").contains("already"));
        assert!(refused("rms_norm", "v2", "fast").contains("fast"));
        assert!(refused("matmul", "v2", "cublas").contains("named after it"));
        for bad in ["", "V2", "2v", "a-b", "fn", "v_", "f32", "x_bf16", "../x"] {
            plan(&checkout(), "rms_norm", bad, "plain").unwrap_err();
        }
    }
}
