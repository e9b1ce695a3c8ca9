//! Lists that a macro holds: `W = [f16, formats!]`.

use proc_macro2::{Group, Ident, TokenStream, TokenTree};
use quote::quote;
use syn::parse::{Parse, ParseStream};
use syn::{Error, ItemFn, bracketed};

use crate::attribute::Attribute;
use crate::substitute;

/// What stands for the list's values until they are known.
const PLACE: &str = "__values_of_a_list";

/// Where the attribute of `item` names a macro: its call, which comes back as a [`KernelOfList`].
pub fn named(attribute: &TokenStream, item: &TokenStream) -> syn::Result<Option<TokenStream>> {
    let mut list = None;
    let attribute = with_place(attribute.clone(), &mut list)?;
    Ok(list.map(|list| quote!(#list! { ::cuda_std::__kernel_of_list, [#attribute] #item })))
}

/// `tokens` with [`PLACE`] for `word!`, and the word.
fn with_place(tokens: TokenStream, list: &mut Option<Ident>) -> syn::Result<TokenStream> {
    let mut replaced: Vec<TokenTree> = Vec::new();
    for tree in tokens {
        match tree {
            TokenTree::Punct(punct) if punct.as_char() == '!' => {
                let Some(TokenTree::Ident(word)) = replaced.pop() else {
                    return Err(Error::new(punct.span(), "expected the name of a list before `!`"));
                };
                if list.replace(word.clone()).is_some_and(|other| other != word) {
                    return Err(Error::new(word.span(), "a kernel has values of one list only"));
                }
                replaced.push(TokenTree::Ident(Ident::new(PLACE, word.span())));
            }
            TokenTree::Group(group) => {
                let mut inner = Group::new(group.delimiter(), with_place(group.stream(), list)?);
                inner.set_span(group.span());
                replaced.push(TokenTree::Group(inner));
            }
            other => replaced.push(other),
        }
    }
    Ok(replaced.into_iter().collect())
}

/// `[values of the list] [attribute] function`
pub struct KernelOfList {
    attribute: Attribute,
    function: ItemFn,
}

impl Parse for KernelOfList {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let (values, attribute);
        bracketed!(values in input);
        bracketed!(attribute in input);
        let values: TokenStream = values.parse()?;
        let attribute =
            substitute::idents(attribute.parse()?, &mut |word| (word == PLACE).then(|| values.clone()));
        Ok(Self { attribute: syn::parse2(attribute)?, function: input.parse()? })
    }
}

impl KernelOfList {
    pub fn expand(&self) -> syn::Result<TokenStream> {
        crate::kernel::expand(&self.attribute, &self.function)
    }
}
