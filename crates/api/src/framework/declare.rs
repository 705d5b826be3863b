//! Shorthand for an endpoint's declaration.

/// Declares an endpoint over the node's services:
///
/// ```ignore
/// endpoint! {
///     /// Starts a VM.
///     Start = post("/nodes/{node}/qemu/{vmid}/status/start"), AtGuest, Access::All("/vms/{vmid}", &["VM.PowerMgmt"]);
///     missing: &["stateuri: it is internal"];
///     fn call(cx, p: StartParams) -> Upid {
///         Ok(cx.ops().start(&cx.actor(), p.vmid, p.asked()).await?)
///     }
/// }
/// ```
#[macro_export]
macro_rules! endpoint {
    (
        $(#[doc = $about:literal])+
        $name:ident = $method:ident($path:literal), $runs:ident, $access:expr;
        $(missing: $missing:expr;)?
        $(authorize: $authorize:expr;)?
        $(returns: $returns:expr;)?
        fn call($cx:ident, $p:ident: $params:ty) -> $answer:ty $body:block
    ) => {
        $(#[doc = $about])+
        pub struct $name;

        impl $crate::framework::Endpoint<$crate::backend::Backend> for $name {
            const ROUTE: $crate::framework::Route = $crate::framework::$method($path);
            const RUNS: $crate::framework::Runs = $crate::framework::Runs::$runs;
            const ACCESS: $crate::framework::Access = $access;
            const ABOUT: &'static str = concat!($($about),+);
            $(const MISSING: &'static [&'static str] = $missing;)?
            type Params = $params;
            type Answer = $answer;

            $(fn authorize(
                caller: &$crate::framework::Caller,
                params: &Self::Params,
            ) -> Result<(), $crate::framework::Error> {
                let check: fn(&$crate::framework::Caller, &Self::Params) -> Result<(), $crate::framework::Error> =
                    $authorize;
                check(caller, params)
            })?

            $(fn returns() -> serde_json::Value {
                $returns
            })?

            async fn call(
                $cx: &$crate::backend::Cx,
                $p: Self::Params,
            ) -> Result<Self::Answer, $crate::framework::Error> $body
        }
    };
}
