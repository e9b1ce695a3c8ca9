//! The arguments of `#[kernel(…)]`.

use proc_macro2::{Span, TokenStream};
use quote::ToTokens;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{Error, Ident, Lit, LitInt, LitStr, Token, Type, bracketed, parenthesized};

/// What stands between the parentheses.
#[derive(Default)]
pub struct Attribute {
    /// The entries' name, where the kernel takes an argument struct.
    pub name: Option<LitStr>,
    /// Lists of values, each for one or several names.
    pub axes: Vec<Axis>,
    max_threads: Option<Bound>,
    min_blocks: Option<Bound>,
    requires: Option<String>,
}

/// `E = [f16, bf16]` or `(E, N) = [few: (f16, 4), many: (bf16, 8)]`.
pub struct Axis {
    pub names: Vec<Ident>,
    alternatives: Vec<Alternative>,
}

struct Alternative {
    /// What stands for the first name in the entry's name.
    label: Option<String>,
    values: Vec<Value>,
}

/// What a name stands for in one entry.
#[derive(Clone)]
pub enum Value {
    Type(Box<Type>),
    Number(LitInt),
}

/// A number, or a name that stands for one.
enum Bound {
    Number(Lit),
    Name(Ident),
}

/// `max_threads`, `min_blocks` and `requires` of one entry; 0 and "" where they are not given.
pub struct LaunchBounds {
    pub max_threads: u32,
    pub min_blocks: u32,
    pub requires: String,
}

/// One entry: its name, and what the names of all lists stand for, in their order.
pub struct Instance {
    pub entry: String,
    pub values: Vec<(Ident, Value)>,
}

const WORDS: &str = "expected `name`, `max_threads`, `min_blocks`, `requires` or a list `E = […]`";

impl Parse for Attribute {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let mut attribute = Self::default();
        while !input.is_empty() {
            attribute.argument(input)?;
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        if attribute.min_blocks.is_some() && attribute.max_threads.is_none() {
            return Err(input.error("`min_blocks` needs `max_threads` beside it"));
        }
        if let (Some(axis), None) = (attribute.axes.first(), &attribute.name) {
            let message = "lists need `name = \"…{E}…\"` beside them: the names of the entries";
            return Err(Error::new(axis.names[0].span(), message));
        }
        Ok(attribute)
    }
}

impl Attribute {
    fn argument(&mut self, input: ParseStream) -> syn::Result<()> {
        if input.peek(syn::token::Paren) {
            let names;
            parenthesized!(names in input);
            let names: Vec<_> =
                Punctuated::<Ident, Token![,]>::parse_terminated(&names)?.into_iter().collect();
            input.parse::<Token![=]>()?;
            self.axes.push(Axis::parse(names, input)?);
            return Ok(());
        }
        let word: Ident = input.parse()?;
        input.parse::<Token![=]>()?;
        let given_before = match word.to_string().as_str() {
            "name" => self.name.replace(input.parse()?).is_some(),
            "max_threads" => self.max_threads.replace(input.parse()?).is_some(),
            "min_blocks" => self.min_blocks.replace(input.parse()?).is_some(),
            "requires" => self.requires.replace(architecture(&input.parse()?)?).is_some(),
            _ if input.peek(syn::token::Bracket) => {
                self.axes.push(Axis::parse(vec![word], input)?);
                return Ok(());
            }
            _ => return Err(Error::new(word.span(), WORDS)),
        };
        if given_before {
            return Err(Error::new(word.span(), format!("`{word}` is given twice")));
        }
        Ok(())
    }

    /// The entries, one for each combination of values; the last list's change first.
    pub fn instances(&self, name: &LitStr) -> syn::Result<Vec<Instance>> {
        let mut combinations = vec![(name.value(), Vec::new())];
        for axis in &self.axes {
            let mut longer = Vec::new();
            for (entry, values) in &combinations {
                for alternative in &axis.alternatives {
                    let mut values: Vec<(Ident, Value)> = values.clone();
                    values.extend(axis.names.iter().cloned().zip(alternative.values.iter().cloned()));
                    longer.push((alternative.written_into(entry, &axis.names), values));
                }
            }
            combinations = longer;
        }
        let mut seen = std::collections::HashSet::new();
        for (entry, _) in &combinations {
            if entry.contains(['{', '}']) {
                let message = format!("`{entry}`: there is no list for what stands in braces");
                return Err(Error::new(name.span(), message));
            }
            if !seen.insert(entry) {
                return Err(Error::new(name.span(), format!("two entries would be named `{entry}`")));
            }
        }
        Ok(combinations.into_iter().map(|(entry, values)| Instance { entry, values }).collect())
    }

    /// The bounds of an entry whose names have these values.
    pub fn bounds(&self, values: &[(Ident, Value)]) -> syn::Result<LaunchBounds> {
        let number = |bound: &Option<Bound>, limit| match bound {
            Some(bound) => bound.number(values, limit),
            None => Ok(0),
        };
        Ok(LaunchBounds {
            max_threads: number(&self.max_threads, 1024)?,
            min_blocks: number(&self.min_blocks, 32)?,
            requires: self.requires.clone().unwrap_or_default(),
        })
    }
}

impl Axis {
    fn parse(names: Vec<Ident>, input: ParseStream) -> syn::Result<Self> {
        let list;
        bracketed!(list in input);
        let mut alternatives = Vec::new();
        while !list.is_empty() {
            let label = if list.peek(syn::Ident) && list.peek2(Token![:]) && !list.peek2(Token![::]) {
                let label: Ident = list.parse()?;
                list.parse::<Token![:]>()?;
                Some(label.to_string())
            } else {
                None
            };
            let values = if names.len() == 1 {
                vec![list.parse()?]
            } else {
                let tuple;
                parenthesized!(tuple in list);
                Punctuated::<Value, Token![,]>::parse_terminated(&tuple)?.into_iter().collect()
            };
            if values.len() != names.len() {
                return Err(list.error(format!("expected {} values", names.len())));
            }
            alternatives.push(Alternative { label, values });
            if !list.is_empty() {
                list.parse::<Token![,]>()?;
            }
        }
        Ok(Self { names, alternatives })
    }
}

impl Alternative {
    /// The entry's name with these values in the places of `names`.
    fn written_into(&self, entry: &str, names: &[Ident]) -> String {
        let mut entry = entry.to_owned();
        for (i, (name, value)) in names.iter().zip(&self.values).enumerate() {
            let text = match &self.label {
                Some(label) if i == 0 => label.clone(),
                _ => value.text(),
            };
            entry = entry.replace(&format!("{{{name}}}"), &text);
        }
        entry
    }
}

impl Parse for Value {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        Ok(if input.peek(LitInt) {
            Self::Number(input.parse()?)
        } else {
            Self::Type(Box::new(input.parse()?))
        })
    }
}

impl ToTokens for Value {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        match self {
            Self::Type(of) => of.to_tokens(tokens),
            Self::Number(number) => number.to_tokens(tokens),
        }
    }
}

impl Value {
    /// In a name: a number, or the last word of a type's path.
    pub fn text(&self) -> String {
        match self {
            Self::Number(number) => number.base10_digits().to_owned(),
            Self::Type(of) => match &**of {
                Type::Path(path) => {
                    path.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default()
                }
                other => other.to_token_stream().to_string(),
            },
        }
    }
}

impl Parse for Bound {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        Ok(if input.peek(syn::Ident) { Self::Name(input.parse()?) } else { Self::Number(input.parse()?) })
    }
}

impl Bound {
    fn number(&self, values: &[(Ident, Value)], limit: u32) -> syn::Result<u32> {
        match self {
            Self::Number(Lit::Int(literal)) => in_limit(literal, limit),
            Self::Number(other) => Err(out_of_limit(other.span(), limit)),
            Self::Name(name) => match values.iter().find(|(other, _)| other == name) {
                Some((_, Value::Number(literal))) => in_limit(literal, limit),
                _ => Err(out_of_limit(name.span(), limit)),
            },
        }
    }
}

fn in_limit(literal: &LitInt, limit: u32) -> syn::Result<u32> {
    let number = literal.base10_parse::<u32>().ok().filter(|number| (1..=limit).contains(number));
    number.ok_or_else(|| out_of_limit(literal.span(), limit))
}

fn out_of_limit(span: Span, limit: u32) -> Error {
    Error::new(span, format!("expected a number from 1 to {limit}"))
}

fn architecture(value: &Lit) -> syn::Result<String> {
    match value {
        Lit::Str(literal) if literal.value().starts_with("sm_") => Ok(literal.value()),
        _ => Err(Error::new(value.span(), "expected an architecture such as `\"sm_90\"`")),
    }
}
