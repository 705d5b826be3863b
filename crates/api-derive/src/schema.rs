//! `derive(Schema)`.

use super::{docs, inside, text};
use proc_macro2::TokenStream as Tokens;
use quote::quote;
use syn::spanned::Spanned;
use syn::{Attribute, Data, DeriveInput, Expr, Fields};

/// What serde is told of a container, a field or a variant.
#[derive(Default)]
struct Written {
    rename: Option<String>,
    rename_all: Option<String>,
    skip: bool,
    optional: bool,
    flatten: bool,
}

fn written(attrs: &[Attribute]) -> syn::Result<Written> {
    let mut w = Written::default();
    for attr in attrs.iter().filter(|a| a.path().is_ident("serde")) {
        attr.parse_nested_meta(|meta| {
            let key = meta.path.get_ident().map(ToString::to_string).unwrap_or_default();
            match key.as_str() {
                "skip" | "skip_serializing" => w.skip = true,
                "flatten" => w.flatten = true,
                // These concern what is read.
                "default" | "deny_unknown_fields" | "alias" if !meta.input.peek(syn::Token![=]) => {}
                _ => {
                    let value: Expr = meta.value()?.parse()?;
                    match key.as_str() {
                        "rename" => w.rename = Some(text(&value)?),
                        "rename_all" => w.rename_all = Some(text(&value)?),
                        "skip_serializing_if" => w.optional = true,
                        "default" | "alias" | "deserialize_with" => {}
                        _ => return Err(meta.error("its schema would not tell of this")),
                    }
                }
            }
            Ok(())
        })?;
    }
    Ok(w)
}

/// A name as serde's `rename_all` writes it.
fn in_case(name: &str, case: Option<&str>) -> Option<String> {
    let split = || {
        let mut out = String::new();
        for c in name.chars() {
            if c.is_uppercase() && !out.is_empty() {
                out.push('_');
            }
            out.extend(c.to_lowercase());
        }
        out
    };
    match case {
        None => Some(name.to_owned()),
        Some("lowercase") => Some(name.to_lowercase()),
        Some("snake_case") => Some(split()),
        Some("kebab-case") => Some(split().replace('_', "-")),
        Some(_) => None,
    }
}

pub fn expand(input: &DeriveInput) -> syn::Result<Tokens> {
    let name = &input.ident;
    let whole = written(&input.attrs)?;
    let case = whole.rename_all.as_deref();
    let body = match &input.data {
        Data::Struct(data) => of_struct(input, &data.fields, case)?,
        Data::Enum(data) => {
            let mut words = vec![];
            for v in &data.variants {
                if !matches!(v.fields, Fields::Unit) {
                    return Err(syn::Error::new(v.span(), "only enums of plain words have a schema"));
                }
                let own = written(&v.attrs)?;
                if !own.skip {
                    words.push(named(&v.ident, own.rename, case)?);
                }
            }
            quote!(::serde_json::json!({"type": "string", "enum": [#(#words),*]}))
        }
        Data::Union(_) => return Err(syn::Error::new(input.span(), "a union has no schema")),
    };
    let (generics, types, wheres) = input.generics.split_for_impl();
    Ok(quote! {
        impl #generics ::stead_model::schema::Schema for #name #types #wheres {
            fn schema() -> ::serde_json::Value {
                #body
            }
        }
    })
}

fn named(ident: &syn::Ident, rename: Option<String>, case: Option<&str>) -> syn::Result<String> {
    let plain = ident.to_string();
    let plain = plain.trim_start_matches("r#");
    match rename {
        Some(name) => Ok(name),
        None => in_case(plain, case)
            .ok_or_else(|| syn::Error::new(ident.span(), "this rename_all is not known here")),
    }
}

fn of_struct(input: &DeriveInput, fields: &Fields, case: Option<&str>) -> syn::Result<Tokens> {
    let Fields::Named(fields) = fields else {
        return Err(syn::Error::new(input.span(), "only structs with named fields have a schema"));
    };
    let about = docs(&input.attrs);
    let mut calls = vec![];
    for field in &fields.named {
        let Some(ident) = &field.ident else { continue };
        let w = written(&field.attrs)?;
        let (ty, about) = (&field.ty, docs(&field.attrs));
        if w.skip {
            continue;
        }
        if w.flatten {
            calls.push(quote!(.flatten::<#ty>()));
            continue;
        }
        // What is left out when there is none is never null.
        let ty = inside(ty, "Option").filter(|_| w.optional).unwrap_or_else(|| ty.clone());
        let (name, required) = (named(ident, w.rename, case)?, !w.optional);
        calls.push(quote!(.field::<#ty>(#name, #about, #required)));
    }
    Ok(quote!(::stead_model::schema::Object::new(#about) #(#calls)* .done()))
}
