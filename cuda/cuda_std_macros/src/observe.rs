//! Makes a function's plain memory accesses visible to the emulator.
//!
//! Only the host's copy of a function is rewritten. `*e` becomes `*e.__cuda_std_read()` and so on; what the methods
//! do follows from the type of `e` (`cuda_std::emulation::observe`). They carry the span of the expression, so
//! that a report has the line of the access.

use proc_macro2::{Delimiter, Group, Span, TokenStream, TokenTree};
use quote::{quote, quote_spanned};
use syn::parse::Parser;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::visit_mut::{self, VisitMut};
use syn::{
    BinOp, Block, Expr, ExprCall, ExprMethodCall, Ident, ImplItemFn, Item, ItemFn, Macro, Stmt, Token,
    TraitItemFn, UnOp, parse_quote_spanned,
};

/// The host's copy of an item: every function in it observed.
pub fn item(item: &mut Item) {
    Observer.visit_item_mut(item);
}

/// The host's copy of a function's body.
pub fn block(block: &mut Block) {
    Observer.observe(block);
}

struct Observer;

/// What is done with a place.
#[derive(Clone, Copy)]
enum Access {
    Read,
    Write,
    Update,
    /// Nothing yet: only its address is taken.
    None,
}

impl Access {
    fn method(self, span: Span) -> Option<Ident> {
        let name = match self {
            Self::Read => "__cuda_std_read",
            Self::Write => "__cuda_std_write",
            Self::Update => "__cuda_std_update",
            Self::None => return None,
        };
        Some(Ident::new(name, span))
    }
}

impl Observer {
    /// Rewrites a body and brings the methods into scope.
    fn observe(&mut self, block: &mut Block) {
        visit_mut::visit_block_mut(self, block);
        let scope: Stmt = syn::parse_quote! {
            #[allow(unused_imports)]
            use ::cuda_std::emulation::observe::{Exclusive as _, Pointer as _, Reference as _};
        };
        block.stmts.insert(0, scope);
    }

    /// Rewrites the place `expression`, which is used as `access` says.
    fn place(&mut self, expression: &mut Expr, access: Access) {
        match expression {
            Expr::Paren(inner) => self.place(&mut inner.expr, access),
            Expr::Group(inner) => self.place(&mut inner.expr, access),
            Expr::Field(field) => self.place(&mut field.base, access),
            Expr::Index(index) => {
                self.place(&mut index.expr, access);
                self.visit_expr_mut(&mut index.index);
            }
            Expr::Unary(unary) if matches!(unary.op, UnOp::Deref(_)) => {
                let span = unary.op.span();
                self.visit_expr_mut(&mut unary.expr);
                if let Some(method) = access.method(span) {
                    let pointer = &unary.expr;
                    unary.expr = parse_quote_spanned!(span=> (#pointer).#method());
                }
            }
            other => self.visit_expr_mut(other),
        }
    }

    /// A method of raw pointers by name and number of arguments: the observing call before it.
    fn pointer_method(&mut self, call: &mut ExprMethodCall) -> Option<Expr> {
        let name = call.method.to_string();
        let (hook, count) = match (name.as_str(), call.args.len()) {
            ("read", 0) => ("__cuda_std_read", None),
            ("write", 1) => ("__cuda_std_write", None),
            ("replace", 1) => ("__cuda_std_update", None),
            ("read_unaligned", 0) => ("__cuda_std_read_unaligned", None),
            ("write_unaligned", 1) => ("__cuda_std_write_unaligned", None),
            ("read_volatile", 0) => ("__cuda_std_read_volatile", None),
            ("write_volatile", 1) => ("__cuda_std_write_volatile", None),
            ("copy_from" | "copy_from_nonoverlapping", 2) => {
                ("__cuda_std_write_many", Some("__cuda_std_read_many"))
            }
            ("copy_to" | "copy_to_nonoverlapping", 2) => {
                ("__cuda_std_read_many", Some("__cuda_std_write_many"))
            }
            ("write_bytes", 2) => ("__cuda_std_write_many", None),
            _ => return None,
        };
        visit_mut::visit_expr_method_call_mut(self, call);
        let (span, method) = (call.method.span(), &call.method);
        let hook = Ident::new(hook, span);
        let (receiver, arguments): (_, Vec<_>) = (&call.receiver, call.args.iter().collect());
        let expression: TokenStream = match (arguments.as_slice(), count) {
            ([], _) => quote_spanned!(span=> (#receiver).#hook().#method()),
            // The value first: making it may take reads and barriers of its own.
            ([value], _) => {
                quote_spanned!(span=> match #value { value => (#receiver).#hook().#method(value) })
            }
            ([other, count], Some(other_hook)) => {
                let other_hook = Ident::new(other_hook, span);
                quote_spanned! {span=> match (#other, #count) {
                    (other, count) => (#receiver).#hook(count).#method(other.#other_hook(count), count)
                } }
            }
            ([value, count], None) => quote_spanned! {span=> match (#value, #count) {
                (value, count) => (#receiver).#hook(count).#method(value, count)
            } },
            _ => return None,
        };
        syn::parse2(expression).ok()
    }

    /// `ptr::read(p)` and its like as methods.
    fn pointer_function(call: &ExprCall) -> Option<Expr> {
        let Expr::Path(path) = &*call.func else { return None };
        let mut segments = path.path.segments.iter().rev();
        let (function, module) = (segments.next()?, segments.next()?);
        if module.ident != "ptr" || !function.arguments.is_none() {
            return None;
        }
        let method = match function.ident.to_string().as_str() {
            // Their first argument is the source.
            "copy" => Ident::new("copy_to", function.ident.span()),
            "copy_nonoverlapping" => Ident::new("copy_to_nonoverlapping", function.ident.span()),
            "read" | "write" | "replace" | "read_unaligned" | "write_unaligned" | "read_volatile"
            | "write_volatile" | "write_bytes" => function.ident.clone(),
            _ => return None,
        };
        let (receiver, arguments) = (call.args.first()?, call.args.iter().skip(1));
        Some(parse_quote_spanned!(call.func.span()=> (#receiver).#method(#(#arguments),*)))
    }
}

impl VisitMut for Observer {
    fn visit_item_fn_mut(&mut self, function: &mut ItemFn) {
        if function.sig.constness.is_none() {
            self.observe(&mut function.block);
        }
    }

    fn visit_impl_item_fn_mut(&mut self, function: &mut ImplItemFn) {
        if function.sig.constness.is_none() {
            self.observe(&mut function.block);
        }
    }

    fn visit_trait_item_fn_mut(&mut self, function: &mut TraitItemFn) {
        if let Some(block) = &mut function.default {
            self.observe(block);
        }
    }

    fn visit_expr_mut(&mut self, expression: &mut Expr) {
        match expression {
            Expr::Unary(unary) if matches!(unary.op, UnOp::Deref(_)) => self.place(expression, Access::Read),
            Expr::Field(_) | Expr::Index(_) => self.place(expression, Access::Read),
            Expr::Assign(assign) => {
                self.place(&mut assign.left, Access::Write);
                self.visit_expr_mut(&mut assign.right);
            }
            Expr::Binary(binary) if is_compound(&binary.op) => {
                self.place(&mut binary.left, Access::Update);
                self.visit_expr_mut(&mut binary.right);
            }
            Expr::Reference(reference) => {
                let access = if reference.mutability.is_some() { Access::Update } else { Access::Read };
                self.place(&mut reference.expr, access);
            }
            Expr::RawAddr(address) => self.place(&mut address.expr, Access::None),
            Expr::Call(call) => match Self::pointer_function(call) {
                Some(method) => {
                    *expression = method;
                    self.visit_expr_mut(expression);
                }
                None => visit_mut::visit_expr_call_mut(self, call),
            },
            Expr::MethodCall(call) => match self.pointer_method(call) {
                Some(observed) => *expression = observed,
                None => visit_mut::visit_expr_method_call_mut(self, call),
            },
            // Constants are not computed by a thread.
            Expr::Const(_) => {}
            other => visit_mut::visit_expr_mut(self, other),
        }
    }

    fn visit_item_const_mut(&mut self, _: &mut syn::ItemConst) {}

    fn visit_item_static_mut(&mut self, _: &mut syn::ItemStatic) {}

    fn visit_type_mut(&mut self, _: &mut syn::Type) {}

    fn visit_pat_mut(&mut self, _: &mut syn::Pat) {}

    fn visit_macro_mut(&mut self, call: &mut Macro) {
        call.tokens = self.tokens(std::mem::take(&mut call.tokens));
    }
}

impl Observer {
    /// The arguments of a macro: expressions and blocks among them are rewritten, all else stays as it is.
    fn tokens(&mut self, tokens: TokenStream) -> TokenStream {
        if let Ok(mut arguments) = Punctuated::<Expr, Token![,]>::parse_terminated.parse2(tokens.clone()) {
            for argument in &mut arguments {
                self.visit_expr_mut(argument);
            }
            return quote!(#arguments);
        }
        let rewrite = |tree| match tree {
            TokenTree::Group(group) => {
                let inside = if group.delimiter() == Delimiter::Brace
                    && let Ok(mut statements) = Block::parse_within.parse2(group.stream())
                {
                    for statement in &mut statements {
                        self.visit_stmt_mut(statement);
                    }
                    quote!(#(#statements)*)
                } else {
                    self.tokens(group.stream())
                };
                let mut rewritten = Group::new(group.delimiter(), inside);
                rewritten.set_span(group.span());
                TokenTree::Group(rewritten)
            }
            other => other,
        };
        tokens.into_iter().map(rewrite).collect()
    }
}

/// `+=` and its like.
fn is_compound(op: &BinOp) -> bool {
    matches!(
        op,
        BinOp::AddAssign(_)
            | BinOp::SubAssign(_)
            | BinOp::MulAssign(_)
            | BinOp::DivAssign(_)
            | BinOp::RemAssign(_)
            | BinOp::BitXorAssign(_)
            | BinOp::BitAndAssign(_)
            | BinOp::BitOrAssign(_)
            | BinOp::ShlAssign(_)
            | BinOp::ShrAssign(_)
    )
}
