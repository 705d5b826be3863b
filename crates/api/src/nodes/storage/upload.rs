//! `/nodes/{node}/storage/{storage}/upload`.

use super::content::ContentType;
use crate::backend::{Backend, Cx};
use crate::framework::{Access, Endpoint, Error, Param, Raw, Route, Runs, post};
use std::path::PathBuf;
use stead_api_derive::Params;
use stead_model::{NodeName, StorageId, Upid};
use stead_ops::storage_view::Checksum;

choice! {
    /// How a checksum is calculated.
    pub enum Algorithm {
        Md5 = "md5",
        Sha1 = "sha1",
        Sha224 = "sha224",
        Sha256 = "sha256",
        Sha384 = "sha384",
        Sha512 = "sha512",
    }
}

#[derive(Params)]
pub struct UploadFile {
    /// The node.
    node: NodeName,
    /// The storage.
    storage: StorageId,
    /// What the file is: `iso`, `vztmpl` or `import`.
    content: ContentType,
    /// The file; its name becomes the volume's.
    #[param(max_length = 255)]
    filename: String,
    /// What the file's checksum must be.
    #[param(requires = "checksum-algorithm")]
    checksum: Option<String>,
    /// How the checksum is calculated.
    #[param(name = "checksum-algorithm", requires = "checksum")]
    algorithm: Option<Algorithm>,
}

/// Takes a file.
pub struct Upload;

impl Endpoint<Backend> for Upload {
    const ROUTE: Route = post("/nodes/{node}/storage/{storage}/upload");
    const RUNS: Runs = Runs::AtNode;
    const ACCESS: Access = Access::All("/storage/{storage}", &["Datastore.AllocateTemplate"]);
    const ABOUT: &'static str = "Takes a file: an ISO image, a template, or an image to import.";
    const MISSING: &'static [&'static str] = &["tmpfilename: it is internal"];
    const UPLOAD: bool = true;
    type Params = UploadFile;
    type Answer = Upid;

    async fn spool(cx: &Cx, before: &Raw, name: &str) -> Result<PathBuf, Error> {
        let wrong = |e: stead_model::IdError| Error::parameter("storage", e.to_string());
        let storage: StorageId = before.first("storage").unwrap_or_default().parse().map_err(wrong)?;
        // What is not valid here is refused with all other parameters.
        let content = before.first("content").and_then(|c| ContentType::read(c).ok());
        cx.ops().check_upload(&storage, content.map(Into::into), name)?;
        Ok(cx.ops().spool(&storage).await?)
    }

    async fn call(cx: &Cx, p: UploadFile) -> Result<Upid, Error> {
        cx.ops().member(&p.node)?;
        cx.ops().check_upload(&p.storage, Some(p.content.into()), &p.filename)?;
        let checksum = match (p.checksum, p.algorithm) {
            (Some(value), Some(a)) => Some(Checksum { algorithm: a.word().to_owned(), value }),
            _ => None,
        };
        let file = cx.take_upload().await?;
        let spooled = file.keep().ok_or_else(|| Error::failed("the file that arrived is gone"))?;
        Ok(cx.ops().adopt_upload(
            &cx.actor(),
            &p.storage,
            p.content.into(),
            &p.filename,
            spooled,
            checksum,
        )?)
    }
}
