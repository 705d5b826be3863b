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
//! `requires`, `required` (a list), and `rest = function`, which gives the schemas of further parameters that end in a map.

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
    Rest(Path),
}

#[derive(Default)]
struct Options {
    name: Option<String>,
    default: Option<String>,
    rest: Option<Path>,
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

fn shape(ty: &Type, rest: Option<&Path>) -> Shape {
    if let Some(f) = rest {
        Shape::Rest(f.clone())
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
    let (mut schemas, mut rests, mut takes, mut idents) = (vec![], vec![], vec![], vec![]);
    for field in fields {
        let Some(ident) = &field.ident else { return Err(wrong()) };
        let o = options(&field.attrs)?;
        let plain = ident.to_string();
        let pname = o.name.unwrap_or_else(|| plain.trim_start_matches("r#").to_owned());
        let (doc, calls, i) = (docs(&field.attrs), &o.calls, schemas.len());
        let default = o.default.as_ref().map(|d| quote!(.defaults_to(#d)));
        idents.push(ident);
        match (shape(&field.ty, o.rest.as_ref()), &o.default) {
            (Shape::Rest(f), _) => {
                rests.push(quote!(schemas.extend(#f());));
                takes.push(
                    quote!(let #ident = Some(__raw.take_rest(__schemas.get(__own..).unwrap_or(&[]), &mut __errors));),
                );
                continue;
            }
            (Shape::Required(ty), None) => {
                schemas.push(quote!(#p::ParamSchema::of::<#ty>(#pname, #doc) #(#calls)*));
                takes.push(quote!(let #ident = __raw.take_required::<#ty>(&__schemas[#i], &mut __errors);));
            }
            (Shape::Required(ty), Some(_)) => {
                schemas.push(quote!(#p::ParamSchema::of::<#ty>(#pname, #doc).optional() #default #(#calls)*));
                takes.push(quote!(let #ident = __raw.take_default::<#ty>(&__schemas[#i], &mut __errors);));
            }
            (Shape::Optional(ty), _) => {
                schemas.push(quote!(#p::ParamSchema::of::<#ty>(#pname, #doc).optional() #default #(#calls)*));
                takes.push(quote!(let #ident = __raw.take_optional::<#ty>(&__schemas[#i], &mut __errors);));
            }
            (Shape::List(ty), _) => {
                let optional = (!o.required).then(|| quote!(.optional()));
                schemas.push(
                    quote!(#p::ParamSchema::of::<#ty>(#pname, #doc) #optional .list() #default #(#calls)*),
                );
                takes.push(quote!(let #ident = __raw.take_list::<#ty>(&__schemas[#i], &mut __errors);));
            }
        }
    }
    let own = schemas.len();
    Ok(quote! {
        impl #p::Params for #name {
            fn schema() -> Vec<#p::ParamSchema> {
                #[allow(unused_mut)]
                let mut schemas = vec![#(#schemas),*];
                #(#rests)*
                schemas
            }

            #[allow(unused_variables)]
            fn parse(mut __raw: #p::Raw, __schemas: &[#p::ParamSchema]) -> Result<Self, #p::Errors> {
                let __own: usize = #own;
                let mut __errors = #p::Errors::default();
                __raw.check_requires(__schemas, &mut __errors);
                #(#takes)*
                __raw.refuse_rest(&mut __errors);
                match (#(#idents,)*) {
                    (#(Some(#idents),)*) if __errors.is_empty() => Ok(Self { #(#idents),* }),
                    _ => Err(__errors),
                }
            }
        }
    })
}
