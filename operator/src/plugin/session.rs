//! One call of the plugin: the API, the namespace, and the way its writes are made.

use std::fmt::Debug;
use std::time::{SystemTime, UNIX_EPOCH};

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ClusterResourceScope, NamespaceResourceScope};
use kube::{Client, Config, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use stockade_crds::v1alpha1::{Host, VirtualMachine};

use super::error::PluginError;

/// The field manager of every write.
const MANAGER: &str = "stockade-cli";

/// The API as this person reaches it.
pub(super) struct Session {
    client: Client,
    /// Namespace of the VMs that are named.
    pub(super) namespace: String,
}

impl Session {
    /// Opens it as kubectl would: flags first, then KUBECONFIG, then ~/.kube/config, then a pod's
    /// own account.
    ///
    /// # Errors
    /// A kubeconfig that can't be read or lacks the context.
    pub(super) async fn open(api: &super::Api) -> Result<Self, PluginError> {
        let options =
            KubeConfigOptions { context: api.context.clone(), ..KubeConfigOptions::default() };
        let mut config = match &api.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).map_err(PluginError::Kubeconfig)?;
                Config::from_custom_kubeconfig(file, &options)
                    .await
                    .map_err(PluginError::Kubeconfig)?
            }
            None if api.context.is_some() => {
                Config::from_kubeconfig(&options).await.map_err(PluginError::Kubeconfig)?
            }
            None => Config::infer().await.map_err(PluginError::Infer)?,
        };
        if let Some(user) = &api.acts_as {
            config.auth_info.impersonate = Some(user.clone());
            let groups = &api.acts_as_groups;
            config.auth_info.impersonate_groups = (!groups.is_empty()).then(|| groups.clone());
        }
        let namespace = api.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(PluginError::Client)?;
        Ok(Self { client, namespace })
    }

    /// Objects of a kind without namespaces.
    pub(super) fn cluster<K>(&self) -> Api<K>
    where
        K: Resource<Scope = ClusterResourceScope, DynamicType = ()>,
    {
        Api::all(self.client.clone())
    }

    /// Objects of a kind in the namespace of this call.
    pub(super) fn namespaced<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        self.within(&self.namespace)
    }

    /// Objects of a kind in some namespace.
    pub(super) fn within<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Every object of a kind.
    ///
    /// # Errors
    /// The server's.
    pub(super) async fn all<K>(&self) -> Result<Vec<K>, PluginError>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let found = Api::<K>::all(self.client.clone()).list(&ListParams::default()).await;
        Ok(found.map_err(PluginError::api(format!("list {}", K::plural(&()))))?.items)
    }

    /// A host.
    ///
    /// # Errors
    /// There is none of that name, or the server's.
    pub(super) async fn host(&self, name: &str) -> Result<Host, PluginError> {
        let found = self.cluster::<Host>().get_opt(name).await;
        found.map_err(PluginError::api(format!("read host {name}")))?.ok_or_else(|| {
            PluginError::Refused(format!("there is no host {name}; `kubectl get shost` lists them"))
        })
    }

    /// A VM of the namespace of this call.
    ///
    /// # Errors
    /// There is none of that name, or the server's.
    pub(super) async fn vm(&self, name: &str) -> Result<VirtualMachine, PluginError> {
        let found = self.namespaced::<VirtualMachine>().get_opt(name).await;
        found.map_err(PluginError::api(format!("read VM {name}")))?.ok_or_else(|| {
            PluginError::Refused(format!(
                "there is no VM {name} in namespace {}; name another with -n, or see `kubectl get \
                 svm -A`",
                self.namespace
            ))
        })
    }

    /// The user as the server knows them.
    ///
    /// # Errors
    /// The server's.
    pub(super) async fn who(&self) -> Result<String, PluginError> {
        let reviews: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let review = reviews.create(&create(), &SelfSubjectReview::default()).await;
        let review = review.map_err(PluginError::api("ask who you are"))?;
        review
            .status
            .and_then(|s| s.user_info)
            .and_then(|u| u.username)
            .filter(|name| !name.is_empty())
            .ok_or_else(|| PluginError::Refused("the API server does not say who you are".into()))
    }
}

/// Changes these fields of an object, and nothing else.
///
/// # Errors
/// The server's.
pub(super) async fn merge<K>(
    api: &Api<K>,
    name: &str,
    fields: Value,
    what: impl Into<String>,
) -> Result<K, PluginError>
where
    K: Clone + DeserializeOwned + Debug,
{
    let how = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    api.patch(name, &how, &Patch::Merge(fields)).await.map_err(PluginError::api(what))
}

/// Makes an object.
///
/// # Errors
/// The server's.
pub(super) async fn make<K>(
    api: &Api<K>,
    object: &K,
    what: impl Into<String>,
) -> Result<K, PluginError>
where
    K: Serialize + Clone + DeserializeOwned + Debug,
{
    api.create(&create(), object).await.map_err(PluginError::api(what))
}

fn create() -> PostParams {
    PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() }
}

/// Milliseconds since the Unix epoch, by this machine's clock.
pub(super) fn wall_millis() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// An id that no request had before.
pub(super) fn fresh_id() -> String {
    format!("{:x}-{:x}", wall_millis(), std::process::id())
}
