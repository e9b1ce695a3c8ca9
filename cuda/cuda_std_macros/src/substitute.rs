//! Replacing words in a stream of tokens.

use proc_macro2::{Group, Ident, TokenStream, TokenTree};

/// `tokens` with what `replacement` answers in the places of words.
pub fn idents(
    tokens: TokenStream,
    replacement: &mut dyn FnMut(&Ident) -> Option<TokenStream>,
) -> TokenStream {
    let mut replaced = TokenStream::new();
    for tree in tokens {
        match tree {
            TokenTree::Ident(ident) => match replacement(&ident) {
                Some(other) => replaced.extend(other),
                None => replaced.extend([TokenTree::Ident(ident)]),
            },
            TokenTree::Group(group) => {
                let mut inner = Group::new(group.delimiter(), idents(group.stream(), replacement));
                inner.set_span(group.span());
                replaced.extend([TokenTree::Group(inner)]);
            }
            other => replaced.extend([other]),
        }
    }
    replaced
}
