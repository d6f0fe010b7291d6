//! Enhanced authentication [MQTT 5, 4.12]: AUTH packets between a CONNECT that names a method and its CONNACK, and again later
//! while the connection is open.
//!
//! # Operation
//! The gate knows the method and makes an [`Exchange`]; the shard carries its data. Before the CONNACK the connection is in
//! [`Phase::AwaitAuth`]: nothing but AUTH and DISCONNECT is taken, each step within the time to connect, and an end in failure is a
//! CONNACK. On an open connection everything goes on beside it, and an end in failure is a DISCONNECT.
//!
//! # Invariants
//! - A method is not changed on its connection [MQTT-4.12.1-1], and no AUTH is sent to a client that named none
//!   [MQTT-4.12.0-6].
//! - Whoever authenticates again stays who it was: what its session holds is that user's.
//! - An exchange has a bounded number of steps: its own affair.

use crate::ConnId;
use crate::hook::{ConnectRequest, Exchange, Grant, Hook, Step};
use crate::session::Phase;
use crate::shard::Shard;
use ferrule_mqtt::{Auth, Packet, Properties, PropertiesBuf, Property, ReasonCode, Version};
use ferrule_store::Store;

/// How a connection authenticates by steps.
#[derive(Debug)]
pub(crate) struct Enhanced {
    method: Box<str>,
    /// While it goes on.
    exchange: Option<Box<dyn Exchange>>,
}

impl<H: Hook, S: Store> Shard<H, S> {
    /// The first step of a CONNECT that names a method, whose [`crate::connect::Connecting`] is there.
    pub(crate) fn connect_by_method(&mut self, id: ConnId, request: &ConnectRequest<'_>, method: &str) {
        let Some(exchange) = self.gate.exchange(request, method) else {
            self.refuse(id, ReasonCode::BAD_AUTHENTICATION_METHOD);
            return;
        };
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.phase = Phase::AwaitAuth;
        let enhanced = Enhanced { method: method.into(), exchange: Some(exchange) };
        conn.publishing.make().enhanced = Some(Box::new(enhanced));
        self.step(id, request.properties.authentication_data().unwrap_or_default());
    }

    pub(crate) fn auth(&mut self, id: ConnId, auth: &Auth<'_>) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let phase = conn.phase;
        let named = auth.properties.authentication_method();
        let enhanced = conn.publishing.get_mut().and_then(|p| p.enhanced.as_mut());
        // Also whoever named no method in its CONNECT, and one that names another.
        let Some(enhanced) = enhanced.filter(|enhanced| named == Some(&*enhanced.method)) else {
            self.protocol_error(id, "AUTH of a method that the CONNECT did not name");
            return;
        };
        match (phase, auth.reason) {
            (_, ReasonCode::CONTINUE_AUTHENTICATION) if enhanced.exchange.is_some() => {}
            (Phase::Open, ReasonCode::REAUTHENTICATE) if enhanced.exchange.is_none() => {
                let method = enhanced.method.clone();
                self.begin_again(id, auth.properties, &method);
            }
            _ => {
                self.protocol_error(id, "AUTH that nothing has asked for");
                return;
            }
        }
        self.step(id, auth.properties.authentication_data().unwrap_or_default());
    }

    fn begin_again(&mut self, id: ConnId, properties: Properties<'_>, method: &str) {
        let Some(conn) = self.conns.get(id) else { return };
        let Some(client_id) = conn.session.and_then(|key| Some(self.sessions.get(key)?.client_id.clone()))
        else {
            return;
        };
        let certificate = conn.publishing.get().and_then(|p| p.certificate.clone());
        let request = ConnectRequest {
            version: conn.version,
            client_id: &client_id,
            username: None,
            password: None,
            peer: conn.peer,
            listener: usize::from(self.rows.listener(conn.limits)),
            certificate: certificate.as_deref(),
            properties,
        };
        let Some(exchange) = self.gate.exchange(&request, method) else {
            self.reject(id, ReasonCode::BAD_AUTHENTICATION_METHOD);
            return;
        };
        if let Some(enhanced) = self.enhanced(id) {
            enhanced.exchange = Some(exchange);
        }
    }

    fn enhanced(&mut self, id: ConnId) -> Option<&mut Enhanced> {
        self.conns.get_mut(id)?.publishing.get_mut()?.enhanced.as_deref_mut()
    }

    fn step(&mut self, id: ConnId, data: &[u8]) {
        let Some(enhanced) = self.enhanced(id) else { return };
        let Some(mut exchange) = enhanced.exchange.take() else { return };
        match exchange.step(data) {
            Step::Continue(data) => {
                enhanced.exchange = Some(exchange);
                let properties = said(&enhanced.method, &data);
                self.write_auth(id, ReasonCode::CONTINUE_AUTHENTICATION, properties.as_properties());
            }
            Step::Done(grant, data) => {
                let properties = said(&enhanced.method, &data);
                self.proved(id, *grant, properties);
            }
            // [MQTT-4.12.0-4], and [MQTT-4.12.1-2] of an open connection.
            Step::Refused(refusal) => self.reject(id, refusal.reason),
        }
    }

    fn proved(&mut self, id: ConnId, mut grant: Grant, properties: PropertiesBuf) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.phase == Phase::AwaitAuth {
            // [MQTT-4.12.0-5]: the CONNACK names the method, too.
            grant.properties.extend(properties.as_properties(), |_| true);
            self.decided(id, Ok(grant));
            return;
        }
        let session = conn.session.and_then(|key| self.sessions.get(key));
        if session.is_none_or(|session| session.username != grant.username) {
            self.reject(id, ReasonCode::NOT_AUTHORIZED);
            return;
        }
        self.change_access(id, grant.access);
        self.write_auth(id, ReasonCode::SUCCESS, properties.as_properties());
    }

    fn write_auth(&mut self, id: ConnId, reason: ReasonCode, properties: Properties<'_>) {
        self.write(id, |out, _| {
            // The data is the exchange's: it encodes, or the client waits in vain and is told that it is late.
            let _ = Packet::Auth(Auth { reason, properties }).encode(Version::V5, out);
        });
    }
}

fn said(method: &str, data: &[u8]) -> PropertiesBuf {
    let mut properties = PropertiesBuf::new();
    // The method came in a string as long; of the data see `write_auth`.
    let _ = properties.push(Property::AuthenticationMethod(method));
    if !data.is_empty() {
        let _ = properties.push(Property::AuthenticationData(data));
    }
    properties
}
