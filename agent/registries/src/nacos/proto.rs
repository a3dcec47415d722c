//! Messages of Nacos' gRPC API. Everything is one envelope with a type's name and JSON in it.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, bail};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::timeout;
use tonic::{
    IntoStreamingRequest, Request, Response, Status, Streaming, client::Grpc, codegen::http::uri::PathAndQuery,
    transport::Channel,
};
use tonic_prost::ProstCodec;

/// Time for the answer to one request.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest list that is taken.
const MESSAGE_BYTES: usize = 64 << 20;
/// All went well.
const SUCCESS: i64 = 200;
/// There is no such configuration.
pub(super) const NOT_FOUND: i64 = 300;

/// The envelope.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Payload {
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<Metadata>,
    #[prost(message, optional, tag = "3")]
    pub body: Option<Any>,
}

/// What is in the envelope and who sends it.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Metadata {
    #[prost(string, tag = "3")]
    pub kind: String,
    #[prost(btree_map = "string, string", tag = "7")]
    pub headers: BTreeMap<String, String>,
    #[prost(string, tag = "8")]
    pub client_ip: String,
}

/// `google.protobuf.Any`, with JSON as its value.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Any {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

impl Payload {
    pub fn new(kind: &str, body: &Value, token: Option<&str>) -> Self {
        let headers = token.map(|token| ("accessToken".to_owned(), token.to_owned())).into_iter().collect();
        Self {
            metadata: Some(Metadata { kind: kind.to_owned(), headers, client_ip: String::new() }),
            body: Some(Any { type_url: String::new(), value: body.to_string().into_bytes() }),
        }
    }

    /// The name of what is in it.
    pub fn kind(&self) -> &str {
        self.metadata.as_ref().map_or("", |metadata| &metadata.kind)
    }

    /// The JSON in it.
    pub fn json<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        let bytes = self.body.as_ref().map_or(&b"{}"[..], |body| &body.value);
        serde_json::from_slice(bytes).with_context(|| format!("a {} that cannot be read", self.kind()))
    }

    /// What a push is answered with.
    pub fn answer_to(push: &Self) -> Self {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct Asked {
            request_id: Option<Value>,
        }
        let asked: Asked = push.json().unwrap_or_default();
        let kind = push.kind().strip_suffix("Request").unwrap_or(push.kind()).to_owned() + "Response";
        let body = json!({"resultCode": SUCCESS, "errorCode": 0, "message": null, "requestId": asked.request_id});
        Self::new(&kind, &body, None)
    }
}

/// What the server says about a request that it did not carry out.
#[derive(Debug)]
pub(super) struct Refused {
    pub code: i64,
    pub message: String,
}

impl std::error::Error for Refused {}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Nacos refuses with code {}: {}", self.code, self.message)
    }
}

fn grpc(channel: &Channel) -> Grpc<Channel> {
    Grpc::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES)
}

/// One request and its answer, within five seconds. [`Refused`] when the server says no.
pub(super) async fn call<T: DeserializeOwned>(channel: &Channel, payload: Payload) -> anyhow::Result<T> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Result_ {
        result_code: i64,
        error_code: i64,
        message: Option<String>,
    }
    let kind = payload.kind().to_owned();
    let mut grpc = grpc(channel);
    let exchange = async {
        grpc.ready().await?;
        let path = PathAndQuery::from_static("/Request/request");
        let codec = ProstCodec::<Payload, Payload>::default();
        let answer = grpc.unary(Request::new(payload), path, codec).await?.into_inner();
        let result: Result_ = answer.json()?;
        if result.result_code != SUCCESS {
            let message = result.message.unwrap_or_default();
            return Err(Refused { code: result.error_code, message }.into());
        }
        answer.json()
    };
    match timeout(PATIENCE, exchange).await {
        Ok(answer) => answer.context(kind),
        Err(_) => bail!("{kind}: no answer within {PATIENCE:?}"),
    }
}

/// Opens the stream on which the server pushes. Some servers answer only with their first push: do not wait for it.
pub(super) async fn stream(
    channel: Channel,
    outgoing: impl IntoStreamingRequest<Message = Payload>,
) -> Result<Streaming<Payload>, Status> {
    let mut grpc = grpc(&channel);
    grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
    let path = PathAndQuery::from_static("/BiRequestStream/requestBiStream");
    let codec = ProstCodec::<Payload, Payload>::default();
    grpc.streaming(outgoing.into_streaming_request(), path, codec).await.map(Response::into_inner)
}
