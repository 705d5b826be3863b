//! `derive(Params)`: what an endpoint takes. `derive(Schema)`: what it answers; see [`schema`].
//!
//! Of `derive(Params)`: from one struct come the parsing of a request's parameters and their schema.
//!
//! ```ignore
//! /// Reads a task's log.
//! #[derive(Params)]
//! struct ReadLog {
//!     /// The cluster node's name.
//!     node: NodeName,
//!     /// The first line, counted from zero.
//!     #[param(min = 0, default = "0")]
//!     start: u64,
//!     /// Only these.
//!     #[param(name = "status-filter")]
//!     status_filter: Vec<Outcome>,
//! }
//! ```
//!
//! A field's type says what is required: `T` is, unless it has a `default`; `Option<T>` and `Vec<T>` are
//! not. The doc comment becomes the description. Attributes: `name`, `default`, `min`, `max`, `max_length`, `format`,
//! `requires`, `required` (a list), `whole` (a list whose values are not split), `flatten` (a struct of parameters, which stand here as if they were the outer one's), and
//! `rest = function`, which gives the schemas of further parameters that end in a map, in the outermost struct alone.

use proc_macro::TokenStream;
use proc_macro2::TokenStream as Tokens;
use quote::quote;
use syn::spanned::Spanned;
use syn::{Attribute, Data, DeriveInput, Expr, Fields, GenericArgument, Lit, Path, PathArguments, Type};

mod schema;

/// From a struct or an enum of plain words that is written by serde come its JSON Schema
/// (`stead_model::schema::Schema`) with the doc comments as descriptions. Of serde's attributes `rename`, `rename_all`,
/// `skip`, `skip_serializing_if` and `flatten` are heeded; others that change what is written are refused.
#[proc_macro_derive(Schema, attributes(serde))]
pub fn schema(input: TokenStream) -> TokenStream {
    let input = syn::parse_macro_input!(input as DeriveInput);
    schema::expand(&input).unwrap_or_else(|e| e.to_compile_error()).into()
}

/// See the crate's documentation.
#[proc_macro_derive(Params, attributes(param))]
pub fn params(input: TokenStream) -> TokenStream {
    let input = syn::parse_macro_input!(input as DeriveInput);
    expand(&input).unwrap_or_else(|e| e.to_compile_error()).into()
}

/// How a field's value is taken.
enum Shape {
    Required(Type),
    Optional(Type),
    List(Type),
    Flatten(Type),
    Rest(Path),
}

#[derive(Default)]
struct Options {
    name: Option<String>,
    default: Option<String>,
    rest: Option<Path>,
    /// Parameters of another struct.
    flatten: bool,
    /// A list that must not be left out.
    required: bool,
    /// Calls on the schema.
    calls: Vec<Tokens>,
}

fn options(attrs: &[Attribute]) -> syn::Result<Options> {
    let mut o = Options::default();
    for attr in attrs.iter().filter(|a| a.path().is_ident("param")) {
        attr.parse_nested_meta(|meta| {
            let key = meta.path.get_ident().map(ToString::to_string).unwrap_or_default();
            if key == "required" {
                o.required = true;
                return Ok(());
            }
            if key == "whole" {
                o.calls.push(quote!(.whole()));
                return Ok(());
            }
            if key == "flatten" {
                o.flatten = true;
                return Ok(());
            }
            if key == "rest" {
                o.rest = Some(meta.value()?.parse()?);
                return Ok(());
            }
            let value: Expr = meta.value()?.parse()?;
            match key.as_str() {
                "name" => o.name = Some(text(&value)?),
                "default" => o.default = Some(text(&value)?),
                "min" => o.calls.push(quote!(.min((#value) as f64))),
                "max" => o.calls.push(quote!(.max((#value) as f64))),
                "max_length" => o.calls.push(quote!(.max_length(#value))),
                "format" => o.calls.push(quote!(.format(#value))),
                "requires" => o.calls.push(quote!(.requires(#value))),
                _ => return Err(meta.error("unknown option of a parameter")),
            }
            Ok(())
        })?;
    }
    Ok(o)
}

fn text(e: &Expr) -> syn::Result<String> {
    match e {
        Expr::Lit(l) => match &l.lit {
            Lit::Str(s) => Ok(s.value()),
            other => Err(syn::Error::new(other.span(), "expected a text in quotes")),
        },
        other => Err(syn::Error::new(other.span(), "expected a text in quotes")),
    }
}

fn docs(attrs: &[Attribute]) -> String {
    let lines = attrs.iter().filter(|a| a.path().is_ident("doc")).filter_map(|a| match &a.meta {
        syn::Meta::NameValue(nv) => text(&nv.value).ok(),
        _ => None,
    });
    lines.map(|l| l.trim().to_owned()).collect::<Vec<_>>().join(" ").trim().to_owned()
}

/// The argument of `Outer<Inner>`.
fn inside(ty: &Type, outer: &str) -> Option<Type> {
    let Type::Path(p) = ty else { return None };
    let last = p.path.segments.last().filter(|s| s.ident == outer)?;
    let PathArguments::AngleBracketed(args) = &last.arguments else { return None };
    match args.args.first() {
        Some(GenericArgument::Type(t)) => Some(t.clone()),
        _ => None,
    }
}

fn shape(ty: &Type, o: &Options) -> Shape {
    if let Some(f) = &o.rest {
        Shape::Rest(f.clone())
    } else if o.flatten {
        Shape::Flatten(ty.clone())
    } else if let Some(t) = inside(ty, "Option") {
        Shape::Optional(t)
    } else if let Some(t) = inside(ty, "Vec") {
        Shape::List(t)
    } else {
        Shape::Required(ty.clone())
    }
}

fn expand(input: &DeriveInput) -> syn::Result<Tokens> {
    let wrong = || syn::Error::new(input.span(), "Params needs a struct with named fields, or none");
    let Data::Struct(data) = &input.data else { return Err(wrong()) };
    let no_fields = Default::default();
    let fields = match &data.fields {
        Fields::Named(f) => &f.named,
        Fields::Unit => &no_fields,
        Fields::Unnamed(_) => return Err(wrong()),
    };
    let name = &input.ident;
    let p = quote!(::stead_api::framework::params);
    let (mut schemas, mut counts, mut rests, mut takes, mut idents) =
        (vec![], vec![], vec![], vec![], vec![]);
    for field in fields {
        let Some(ident) = &field.ident else { return Err(wrong()) };
        let o = options(&field.attrs)?;
        let shape = shape(&field.ty, &o);
        let plain = ident.to_string();
        let pname = o.name.unwrap_or_else(|| plain.trim_start_matches("r#").to_owned());
        let (doc, calls) = (docs(&field.attrs), &o.calls);
        let default = o.default.as_ref().map(|d| quote!(.defaults_to(#d)));
        idents.push(ident);
        let (ty, optional, list, take) = match (shape, &o.default) {
            (Shape::Rest(f), _) => {
                rests.push(quote!(schemas.extend(#f());));
                takes.push(
                    quote!(let #ident = Some(__raw.take_rest(__schemas.get(Self::COUNT..).unwrap_or(&[]), __errors));),
                );
                continue;
            }
            (Shape::Flatten(ty), _) => {
                schemas.push(quote!(schemas.extend(<#ty as #p::Params>::schema());));
                takes.push(quote! {
                    let #ident = <#ty as #p::Params>::take(__raw, &__schemas[__at..], __errors);
                    __at += <#ty as #p::Params>::COUNT;
                });
                counts.push(quote!(<#ty as #p::Params>::COUNT));
                continue;
            }
            (Shape::Required(ty), None) => (ty, false, false, quote!(take_required)),
            (Shape::Required(ty), Some(_)) => (ty, true, false, quote!(take_default)),
            (Shape::Optional(ty), _) => (ty, true, false, quote!(take_optional)),
            (Shape::List(ty), _) => (ty, !o.required, true, quote!(take_list)),
        };
        let (optional, list) = (optional.then(|| quote!(.optional())), list.then(|| quote!(.list())));
        schemas.push(quote!(
            schemas.push(#p::ParamSchema::of::<#ty>(#pname, #doc) #optional #list #default #(#calls)*);
        ));
        takes.push(quote! {
            let #ident = __raw.#take::<#ty>(&__schemas[__at], __errors);
            __at += 1;
        });
        counts.push(quote!(1));
    }
    Ok(quote! {
        impl #p::Params for #name {
            const COUNT: usize = 0 #(+ #counts)*;

            fn schema() -> Vec<#p::ParamSchema> {
                #[allow(unused_mut)]
                let mut schemas = vec![];
                #(#schemas)*
                #(#rests)*
                schemas
            }

            #[allow(unused_variables, unused_mut, unused_assignments)]
            fn take(
                __raw: &mut #p::Raw,
                __schemas: &[#p::ParamSchema],
                __errors: &mut #p::Errors,
            ) -> Option<Self> {
                let mut __at = 0;
                #(#takes)*
                Some(Self { #(#idents: #idents?),* })
            }
        }
    })
}
