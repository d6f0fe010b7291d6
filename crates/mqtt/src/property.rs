//! Properties of MQTT 5 [2.2.2]: an encoded view, its check, and a builder.
//!
//! A view holds the bytes behind the length prefix: `(identifier, value)*`. Identifiers are variable byte integers
//! of which all defined ones fit in one byte below 64, so the set of those seen or permitted is a `u64`.

use crate::reader::{NOT_IN_NAMES, Reader, contains_any};
use crate::{DecodeError, EncodeError, MAX_REMAINING_LENGTH, PacketType, QoS};

/// One property.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Property<'a> {
    /// Whether the payload is UTF-8 text.
    PayloadFormatIndicator(bool),
    /// Lifetime of the message, in seconds.
    MessageExpiryInterval(u32),
    /// Type of the payload, meant for the application.
    ContentType(&'a str),
    /// Topic name for the response; without wildcards.
    ResponseTopic(&'a str),
    /// What the requester recognises the response by.
    CorrelationData(&'a [u8]),
    /// 1 to 268,435,455. In SUBSCRIBE once; in PUBLISH once for each matching subscription.
    SubscriptionIdentifier(u32),
    /// How long the session outlives its connection, in seconds; `0xFFFF_FFFF` is forever.
    SessionExpiryInterval(u32),
    /// The identifier that the server gave to a client that came without one.
    AssignedClientIdentifier(&'a str),
    /// Seconds; replaces the client's own.
    ServerKeepAlive(u16),
    /// Name of the enhanced authentication method.
    AuthenticationMethod(&'a str),
    /// Data of that method.
    AuthenticationData(&'a [u8]),
    /// Whether the client wants reason strings and user properties in other packets than PUBLISH.
    RequestProblemInformation(bool),
    /// Seconds between the end of the connection and the will.
    WillDelayInterval(u32),
    /// Whether the client wants `ResponseInformation`.
    RequestResponseInformation(bool),
    /// Base of response topics.
    ResponseInformation(&'a str),
    /// Another server to use.
    ServerReference(&'a str),
    /// For people who read logs.
    ReasonString(&'a str),
    /// How many QoS 1 and 2 messages may be in flight; not 0.
    ReceiveMaximum(u16),
    /// Highest topic alias that the sender of this accepts.
    TopicAliasMaximum(u16),
    /// Stands for a topic name; not 0.
    TopicAlias(u16),
    /// Highest QoS that the server accepts: 0 or 1 (2 is said by absence).
    MaximumQoS(QoS),
    /// Whether the server keeps retained messages.
    RetainAvailable(bool),
    /// Name and value; may repeat, also with the same name; order is kept.
    UserProperty(&'a str, &'a str),
    /// Largest packet that the sender of this accepts, in bytes; not 0.
    MaximumPacketSize(u32),
    /// Whether the server supports wildcards in subscriptions.
    WildcardSubscriptionAvailable(bool),
    /// Whether the server supports subscription identifiers.
    SubscriptionIdentifierAvailable(bool),
    /// Whether the server supports shared subscriptions.
    SharedSubscriptionAvailable(bool),
}

/// The identifier of a property; the number is the one on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names of `Property`, documented there")]
pub enum PropertyId {
    PayloadFormatIndicator = 1,
    MessageExpiryInterval = 2,
    ContentType = 3,
    ResponseTopic = 8,
    CorrelationData = 9,
    SubscriptionIdentifier = 11,
    SessionExpiryInterval = 17,
    AssignedClientIdentifier = 18,
    ServerKeepAlive = 19,
    AuthenticationMethod = 21,
    AuthenticationData = 22,
    RequestProblemInformation = 23,
    WillDelayInterval = 24,
    RequestResponseInformation = 25,
    ResponseInformation = 26,
    ServerReference = 28,
    ReasonString = 31,
    ReceiveMaximum = 33,
    TopicAliasMaximum = 34,
    TopicAlias = 35,
    MaximumQoS = 36,
    RetainAvailable = 37,
    UserProperty = 38,
    MaximumPacketSize = 39,
    WildcardSubscriptionAvailable = 40,
    SubscriptionIdentifierAvailable = 41,
    SharedSubscriptionAvailable = 42,
}

/// Where properties stand: this decides which are permitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PropertyScope {
    /// The properties of a packet of this type.
    Packet(PacketType),
    /// The will properties in CONNECT.
    Will,
}

/// The checked, still encoded properties of a packet, without their length prefix.
///
/// Equality is that of the bytes: order counts.
///
/// ```
/// use ferrule_mqtt::{PacketType, Properties, Property, PropertyScope};
///
/// let bytes = [0x02, 0, 0, 0, 60, 0x26, 0, 1, b'k', 0, 1, b'v'];
/// let properties = Properties::checked(&bytes, PropertyScope::Packet(PacketType::Publish))?;
/// assert_eq!(properties.message_expiry_interval(), Some(60));
/// assert_eq!(properties.iter().last(), Some(Property::UserProperty("k", "v")));
/// # Ok::<(), ferrule_mqtt::DecodeError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Properties<'a> {
    bytes: &'a [u8],
}

/// Builds properties.
///
/// ```
/// use ferrule_mqtt::{PropertiesBuf, Property};
///
/// let mut buf = PropertiesBuf::new();
/// buf.push(Property::ReasonString("quota"))?;
/// assert_eq!(buf.as_properties().reason_string(), Some("quota"));
/// # Ok::<(), ferrule_mqtt::EncodeError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PropertiesBuf {
    bytes: Vec<u8>,
}

/// The form of a value on the wire.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Byte,
    U16,
    U32,
    VarInt,
    Text,
    Binary,
    Pair,
}

// === impl PropertyId ===

impl PropertyId {
    #[inline]
    const fn from_u8(id: u8) -> Option<Self> {
        Some(match id {
            1 => Self::PayloadFormatIndicator,
            2 => Self::MessageExpiryInterval,
            3 => Self::ContentType,
            8 => Self::ResponseTopic,
            9 => Self::CorrelationData,
            11 => Self::SubscriptionIdentifier,
            17 => Self::SessionExpiryInterval,
            18 => Self::AssignedClientIdentifier,
            19 => Self::ServerKeepAlive,
            21 => Self::AuthenticationMethod,
            22 => Self::AuthenticationData,
            23 => Self::RequestProblemInformation,
            24 => Self::WillDelayInterval,
            25 => Self::RequestResponseInformation,
            26 => Self::ResponseInformation,
            28 => Self::ServerReference,
            31 => Self::ReasonString,
            33 => Self::ReceiveMaximum,
            34 => Self::TopicAliasMaximum,
            35 => Self::TopicAlias,
            36 => Self::MaximumQoS,
            37 => Self::RetainAvailable,
            38 => Self::UserProperty,
            39 => Self::MaximumPacketSize,
            40 => Self::WildcardSubscriptionAvailable,
            41 => Self::SubscriptionIdentifierAvailable,
            42 => Self::SharedSubscriptionAvailable,
            _ => return None,
        })
    }

    #[inline]
    const fn bit(self) -> u64 {
        1 << (self as u8)
    }

    #[inline]
    const fn form(self) -> Form {
        match self {
            Self::PayloadFormatIndicator
            | Self::RequestProblemInformation
            | Self::RequestResponseInformation
            | Self::MaximumQoS
            | Self::RetainAvailable
            | Self::WildcardSubscriptionAvailable
            | Self::SubscriptionIdentifierAvailable
            | Self::SharedSubscriptionAvailable => Form::Byte,
            Self::ServerKeepAlive | Self::ReceiveMaximum | Self::TopicAliasMaximum | Self::TopicAlias => {
                Form::U16
            }
            Self::MessageExpiryInterval
            | Self::SessionExpiryInterval
            | Self::WillDelayInterval
            | Self::MaximumPacketSize => Form::U32,
            Self::SubscriptionIdentifier => Form::VarInt,
            Self::ContentType
            | Self::ResponseTopic
            | Self::AssignedClientIdentifier
            | Self::AuthenticationMethod
            | Self::ResponseInformation
            | Self::ServerReference
            | Self::ReasonString => Form::Text,
            Self::CorrelationData | Self::AuthenticationData => Form::Binary,
            Self::UserProperty => Form::Pair,
        }
    }
}

const fn set(ids: &[PropertyId]) -> u64 {
    let mut bits = 0;
    let mut index = 0;
    while index < ids.len() {
        bits |= ids[index].bit();
        index += 1;
    }
    bits
}

// === impl PropertyScope ===

impl PropertyScope {
    /// Table 2-4 of the standard, by column.
    const fn allowed(self) -> u64 {
        use PropertyId as P;
        const MESSAGE: &[PropertyId] = &[
            P::PayloadFormatIndicator,
            P::MessageExpiryInterval,
            P::ContentType,
            P::ResponseTopic,
            P::CorrelationData,
            P::UserProperty,
        ];
        match self {
            Self::Will => const { set(MESSAGE) | P::WillDelayInterval.bit() },
            Self::Packet(packet) => match packet {
                PacketType::Publish => {
                    const { set(MESSAGE) | P::SubscriptionIdentifier.bit() | P::TopicAlias.bit() }
                }
                PacketType::Connect => {
                    const {
                        set(&[
                            P::SessionExpiryInterval,
                            P::AuthenticationMethod,
                            P::AuthenticationData,
                            P::RequestProblemInformation,
                            P::RequestResponseInformation,
                            P::ReceiveMaximum,
                            P::TopicAliasMaximum,
                            P::UserProperty,
                            P::MaximumPacketSize,
                        ])
                    }
                }
                PacketType::Connack => {
                    const {
                        set(&[
                            P::SessionExpiryInterval,
                            P::AssignedClientIdentifier,
                            P::ServerKeepAlive,
                            P::AuthenticationMethod,
                            P::AuthenticationData,
                            P::ResponseInformation,
                            P::ServerReference,
                            P::ReasonString,
                            P::ReceiveMaximum,
                            P::TopicAliasMaximum,
                            P::MaximumQoS,
                            P::RetainAvailable,
                            P::UserProperty,
                            P::MaximumPacketSize,
                            P::WildcardSubscriptionAvailable,
                            P::SubscriptionIdentifierAvailable,
                            P::SharedSubscriptionAvailable,
                        ])
                    }
                }
                PacketType::Puback
                | PacketType::Pubrec
                | PacketType::Pubrel
                | PacketType::Pubcomp
                | PacketType::Suback
                | PacketType::Unsuback => const { set(&[P::ReasonString, P::UserProperty]) },
                PacketType::Subscribe => const { set(&[P::SubscriptionIdentifier, P::UserProperty]) },
                PacketType::Unsubscribe => const { set(&[P::UserProperty]) },
                PacketType::Disconnect => {
                    const { set(&[P::SessionExpiryInterval, P::ServerReference, P::ReasonString, P::UserProperty]) }
                }
                PacketType::Auth => {
                    const {
                        set(&[
                            P::AuthenticationMethod,
                            P::AuthenticationData,
                            P::ReasonString,
                            P::UserProperty,
                        ])
                    }
                }
                PacketType::Pingreq | PacketType::Pingresp => 0,
            },
        }
    }

    const fn repeatable(self) -> u64 {
        match self {
            Self::Packet(PacketType::Publish) => {
                const { set(&[PropertyId::UserProperty, PropertyId::SubscriptionIdentifier]) }
            }
            _ => const { set(&[PropertyId::UserProperty]) },
        }
    }
}

// === reading ===

/// Whether a one byte value is a yes or a no.
#[inline]
fn boolean(value: u8) -> Result<bool, DecodeError> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::Protocol("property value is neither 0 nor 1")),
    }
}

/// Reads and checks one property, all but its place and its number of occurrences.
#[inline]
fn read<'a>(reader: &mut Reader<'a>) -> Result<(PropertyId, Property<'a>), DecodeError> {
    let id = PropertyId::from_u8(reader.u8()?)
        .ok_or(DecodeError::Malformed("unknown property identifier [2.2.2.2]"))?;
    let property = match id {
        PropertyId::PayloadFormatIndicator => Property::PayloadFormatIndicator(boolean(reader.u8()?)?),
        PropertyId::MessageExpiryInterval => Property::MessageExpiryInterval(reader.u32()?),
        PropertyId::ContentType => Property::ContentType(reader.string()?),
        PropertyId::ResponseTopic => match reader.topic_name()? {
            "" => return Err(DecodeError::Malformed("response topic is empty [MQTT-4.7.3-1]")),
            topic => Property::ResponseTopic(topic),
        },
        PropertyId::CorrelationData => Property::CorrelationData(reader.binary()?),
        PropertyId::SubscriptionIdentifier => match reader.var_int()? {
            0 => return Err(DecodeError::Protocol("subscription identifier is 0 [3.8.2.1.2]")),
            identifier => Property::SubscriptionIdentifier(identifier),
        },
        PropertyId::SessionExpiryInterval => Property::SessionExpiryInterval(reader.u32()?),
        PropertyId::AssignedClientIdentifier => Property::AssignedClientIdentifier(reader.string()?),
        PropertyId::ServerKeepAlive => Property::ServerKeepAlive(reader.u16()?),
        PropertyId::AuthenticationMethod => Property::AuthenticationMethod(reader.string()?),
        PropertyId::AuthenticationData => Property::AuthenticationData(reader.binary()?),
        PropertyId::RequestProblemInformation => Property::RequestProblemInformation(boolean(reader.u8()?)?),
        PropertyId::WillDelayInterval => Property::WillDelayInterval(reader.u32()?),
        PropertyId::RequestResponseInformation => {
            Property::RequestResponseInformation(boolean(reader.u8()?)?)
        }
        PropertyId::ResponseInformation => Property::ResponseInformation(reader.string()?),
        PropertyId::ServerReference => Property::ServerReference(reader.string()?),
        PropertyId::ReasonString => Property::ReasonString(reader.string()?),
        PropertyId::ReceiveMaximum => match reader.u16()? {
            0 => return Err(DecodeError::Protocol("receive maximum is 0 [3.1.2.11.3]")),
            maximum => Property::ReceiveMaximum(maximum),
        },
        PropertyId::TopicAliasMaximum => Property::TopicAliasMaximum(reader.u16()?),
        PropertyId::TopicAlias => match reader.u16()? {
            0 => return Err(DecodeError::TopicAliasInvalid),
            alias => Property::TopicAlias(alias),
        },
        PropertyId::MaximumQoS => match reader.u8()? {
            0 => Property::MaximumQoS(QoS::AtMostOnce),
            1 => Property::MaximumQoS(QoS::AtLeastOnce),
            _ => return Err(DecodeError::Protocol("maximum QoS is neither 0 nor 1 [3.2.2.3.4]")),
        },
        PropertyId::RetainAvailable => Property::RetainAvailable(boolean(reader.u8()?)?),
        PropertyId::UserProperty => Property::UserProperty(reader.string()?, reader.string()?),
        PropertyId::MaximumPacketSize => match reader.u32()? {
            0 => return Err(DecodeError::Protocol("maximum packet size is 0 [3.1.2.11.4]")),
            size => Property::MaximumPacketSize(size),
        },
        PropertyId::WildcardSubscriptionAvailable => {
            Property::WildcardSubscriptionAvailable(boolean(reader.u8()?)?)
        }
        PropertyId::SubscriptionIdentifierAvailable => {
            Property::SubscriptionIdentifierAvailable(boolean(reader.u8()?)?)
        }
        PropertyId::SharedSubscriptionAvailable => {
            Property::SharedSubscriptionAvailable(boolean(reader.u8()?)?)
        }
    };
    Ok((id, property))
}

/// Steps over one property without looking into its value: the identifier and the value's bytes as encoded.
#[inline]
fn skip<'a>(reader: &mut Reader<'a>) -> Result<(PropertyId, &'a [u8]), DecodeError> {
    let id = PropertyId::from_u8(reader.u8()?)
        .ok_or(DecodeError::Malformed("unknown property identifier [2.2.2.2]"))?;
    let start = *reader;
    match id.form() {
        Form::Byte => reader.u8().map(drop)?,
        Form::U16 => reader.u16().map(drop)?,
        Form::U32 => reader.u32().map(drop)?,
        Form::VarInt => reader.var_int().map(drop)?,
        Form::Text | Form::Binary => reader.binary().map(drop)?,
        Form::Pair => {
            reader.binary()?;
            reader.binary()?;
        }
    }
    let mut value = start;
    let len = start.rest().len().saturating_sub(reader.rest().len());
    Ok((id, value.take(len)?))
}

// === impl Properties ===

impl<'a> Properties<'a> {
    /// No properties.
    pub const EMPTY: Properties<'static> = Properties { bytes: &[] };

    /// Checks bytes that come from elsewhere than [`decode`](crate::decode), a store for example.
    ///
    /// # Errors
    ///
    /// As [`decode`](crate::decode) has for properties: unknown or not permitted here (malformed), repeated or
    /// out of range (protocol error), strings that are not UTF-8 or contain U+0000.
    pub fn checked(bytes: &'a [u8], scope: PropertyScope) -> Result<Self, DecodeError> {
        if bytes.is_empty() {
            return Ok(Self { bytes });
        }
        let allowed = scope.allowed();
        let once = !scope.repeatable();
        let mut seen = 0_u64;
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            let (id, _) = read(&mut reader)?;
            let bit = id.bit();
            if allowed & bit == 0 {
                return Err(DecodeError::Malformed("property is not permitted in this packet [2.2.2.2]"));
            }
            if seen & once & bit != 0 {
                return Err(DecodeError::Protocol("property is present more than once [2.2.2.2]"));
            }
            seen |= bit;
        }
        if seen & PropertyId::AuthenticationMethod.bit() == 0 {
            match scope {
                PropertyScope::Packet(PacketType::Connect)
                    if seen & PropertyId::AuthenticationData.bit() != 0 =>
                {
                    return Err(DecodeError::Protocol("authentication data without a method [3.1.2.11.10]"));
                }
                PropertyScope::Packet(PacketType::Auth) => {
                    return Err(DecodeError::Protocol("AUTH without an authentication method [3.15.2.2.2]"));
                }
                _ => {}
            }
        }
        Ok(Self { bytes })
    }

    /// The length prefix and as many bytes, checked.
    #[inline]
    pub(crate) fn decode(reader: &mut Reader<'a>, scope: PropertyScope) -> Result<Self, DecodeError> {
        let len = reader.var_int()?;
        // A length that does not fit a usize does not fit the packet either.
        let bytes = reader.take(usize::try_from(len).unwrap_or(usize::MAX))?;
        Self::checked(bytes, scope)
    }

    /// Whether there are none.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.bytes.is_empty()
    }

    /// The encoded properties without the length prefix: what a store keeps and [`Properties::checked`] takes.
    #[inline]
    pub const fn as_bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// All properties in the order of the packet.
    pub fn iter(self) -> impl Iterator<Item = Property<'a>> + Clone {
        let mut reader = Reader::new(self.bytes);
        // The bytes were checked: an error can only be the end.
        std::iter::from_fn(move || read(&mut reader).ok().map(|(_, property)| property))
    }

    /// The first property of this identifier. Others are stepped over, not parsed.
    #[inline]
    pub fn get(self, id: PropertyId) -> Option<Property<'a>> {
        let mut reader = Reader::new(self.bytes);
        while !reader.is_empty() {
            let mut here = reader;
            if skip(&mut reader).ok()?.0 == id {
                return read(&mut here).ok().map(|(_, property)| property);
            }
        }
        None
    }

    /// Whether a property of this identifier is present.
    #[inline]
    pub fn contains(self, id: PropertyId) -> bool {
        self.encoded().any(|(found, _)| found == id)
    }

    /// Identifier and encoded value (without the identifier byte) of each property: for copying and filtering.
    pub fn encoded(self) -> impl Iterator<Item = (PropertyId, &'a [u8])> + Clone {
        let mut reader = Reader::new(self.bytes);
        std::iter::from_fn(move || skip(&mut reader).ok())
    }

    /// All user properties, in order.
    pub fn user_properties(self) -> impl Iterator<Item = (&'a str, &'a str)> + Clone {
        self.iter().filter_map(|property| match property {
            Property::UserProperty(name, value) => Some((name, value)),
            _ => None,
        })
    }

    /// All subscription identifiers, in order.
    pub fn subscription_identifiers(self) -> impl Iterator<Item = u32> + Clone {
        self.iter().filter_map(|property| match property {
            Property::SubscriptionIdentifier(identifier) => Some(identifier),
            _ => None,
        })
    }
}

macro_rules! getters {
    ($($name:ident -> $variant:ident $type:ty;)*) => {
        impl<'a> Properties<'a> {
            $(
                #[doc = concat!("The value of [`Property::", stringify!($variant), "`], where present.")]
                #[inline]
                pub fn $name(self) -> Option<$type> {
                    match self.get(PropertyId::$variant) {
                        Some(Property::$variant(value)) => Some(value),
                        _ => None,
                    }
                }
            )*
        }
    };
}

getters! {
    payload_format_indicator -> PayloadFormatIndicator bool;
    message_expiry_interval -> MessageExpiryInterval u32;
    content_type -> ContentType &'a str;
    response_topic -> ResponseTopic &'a str;
    correlation_data -> CorrelationData &'a [u8];
    subscription_identifier -> SubscriptionIdentifier u32;
    session_expiry_interval -> SessionExpiryInterval u32;
    assigned_client_identifier -> AssignedClientIdentifier &'a str;
    server_keep_alive -> ServerKeepAlive u16;
    authentication_method -> AuthenticationMethod &'a str;
    authentication_data -> AuthenticationData &'a [u8];
    request_problem_information -> RequestProblemInformation bool;
    will_delay_interval -> WillDelayInterval u32;
    request_response_information -> RequestResponseInformation bool;
    response_information -> ResponseInformation &'a str;
    server_reference -> ServerReference &'a str;
    reason_string -> ReasonString &'a str;
    receive_maximum -> ReceiveMaximum u16;
    topic_alias_maximum -> TopicAliasMaximum u16;
    topic_alias -> TopicAlias u16;
    maximum_qos -> MaximumQoS QoS;
    retain_available -> RetainAvailable bool;
    maximum_packet_size -> MaximumPacketSize u32;
    wildcard_subscription_available -> WildcardSubscriptionAvailable bool;
    subscription_identifier_available -> SubscriptionIdentifierAvailable bool;
    shared_subscription_available -> SharedSubscriptionAvailable bool;
}

impl std::fmt::Debug for Properties<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

// === impl Property ===

impl Property<'_> {
    /// The identifier.
    pub const fn id(&self) -> PropertyId {
        match self {
            Self::PayloadFormatIndicator(_) => PropertyId::PayloadFormatIndicator,
            Self::MessageExpiryInterval(_) => PropertyId::MessageExpiryInterval,
            Self::ContentType(_) => PropertyId::ContentType,
            Self::ResponseTopic(_) => PropertyId::ResponseTopic,
            Self::CorrelationData(_) => PropertyId::CorrelationData,
            Self::SubscriptionIdentifier(_) => PropertyId::SubscriptionIdentifier,
            Self::SessionExpiryInterval(_) => PropertyId::SessionExpiryInterval,
            Self::AssignedClientIdentifier(_) => PropertyId::AssignedClientIdentifier,
            Self::ServerKeepAlive(_) => PropertyId::ServerKeepAlive,
            Self::AuthenticationMethod(_) => PropertyId::AuthenticationMethod,
            Self::AuthenticationData(_) => PropertyId::AuthenticationData,
            Self::RequestProblemInformation(_) => PropertyId::RequestProblemInformation,
            Self::WillDelayInterval(_) => PropertyId::WillDelayInterval,
            Self::RequestResponseInformation(_) => PropertyId::RequestResponseInformation,
            Self::ResponseInformation(_) => PropertyId::ResponseInformation,
            Self::ServerReference(_) => PropertyId::ServerReference,
            Self::ReasonString(_) => PropertyId::ReasonString,
            Self::ReceiveMaximum(_) => PropertyId::ReceiveMaximum,
            Self::TopicAliasMaximum(_) => PropertyId::TopicAliasMaximum,
            Self::TopicAlias(_) => PropertyId::TopicAlias,
            Self::MaximumQoS(_) => PropertyId::MaximumQoS,
            Self::RetainAvailable(_) => PropertyId::RetainAvailable,
            Self::UserProperty(..) => PropertyId::UserProperty,
            Self::MaximumPacketSize(_) => PropertyId::MaximumPacketSize,
            Self::WildcardSubscriptionAvailable(_) => PropertyId::WildcardSubscriptionAvailable,
            Self::SubscriptionIdentifierAvailable(_) => PropertyId::SubscriptionIdentifierAvailable,
            Self::SharedSubscriptionAvailable(_) => PropertyId::SharedSubscriptionAvailable,
        }
    }
}

// === impl PropertiesBuf ===

impl PropertiesBuf {
    /// An empty builder.
    pub const fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    /// Appends one property.
    ///
    /// Whether it fits the packet and is unique there is for the caller to know; its value is checked.
    ///
    /// # Errors
    ///
    /// A string or binary value over 65,535 bytes, and values that [`Property`] documents as forbidden. The
    /// builder is then unchanged.
    pub fn push(&mut self, property: Property<'_>) -> Result<(), EncodeError> {
        let start = self.bytes.len();
        let done = self.write(property);
        if done.is_err() {
            self.bytes.truncate(start);
        }
        done
    }

    /// Appends the properties of `from` whose identifier `keep` accepts, as they are.
    ///
    /// ```
    /// use ferrule_mqtt::{PropertiesBuf, Property, PropertyId};
    ///
    /// let mut received = PropertiesBuf::new();
    /// received.push(Property::TopicAlias(1))?;
    /// received.push(Property::ContentType("text/plain"))?;
    /// let mut forwarded = PropertiesBuf::new();
    /// forwarded.extend(received.as_properties(), |id| id != PropertyId::TopicAlias);
    /// assert_eq!(forwarded.as_properties().iter().count(), 1);
    /// # Ok::<(), ferrule_mqtt::EncodeError>(())
    /// ```
    pub fn extend(&mut self, from: Properties<'_>, mut keep: impl FnMut(PropertyId) -> bool) {
        for (id, value) in from.encoded() {
            if keep(id) {
                self.bytes.push(id as u8);
                self.bytes.extend_from_slice(value);
            }
        }
    }

    /// The view to put into a packet.
    pub fn as_properties(&self) -> Properties<'_> {
        Properties { bytes: &self.bytes }
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Removes all, keeps the allocation.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    fn write(&mut self, property: Property<'_>) -> Result<(), EncodeError> {
        let out = &mut self.bytes;
        out.push(property.id() as u8);
        match property {
            Property::PayloadFormatIndicator(value)
            | Property::RequestProblemInformation(value)
            | Property::RequestResponseInformation(value)
            | Property::RetainAvailable(value)
            | Property::WildcardSubscriptionAvailable(value)
            | Property::SubscriptionIdentifierAvailable(value)
            | Property::SharedSubscriptionAvailable(value) => out.push(u8::from(value)),
            Property::MaximumQoS(QoS::ExactlyOnce) => {
                return Err(EncodeError::Invalid("maximum QoS 2 is said by absence"));
            }
            Property::MaximumQoS(qos) => out.push(qos as u8),
            Property::ReceiveMaximum(0) => return Err(EncodeError::Invalid("receive maximum is 0")),
            Property::TopicAlias(0) => return Err(EncodeError::Invalid("topic alias is 0")),
            Property::ServerKeepAlive(value)
            | Property::ReceiveMaximum(value)
            | Property::TopicAliasMaximum(value)
            | Property::TopicAlias(value) => out.extend_from_slice(&value.to_be_bytes()),
            Property::MaximumPacketSize(0) => return Err(EncodeError::Invalid("maximum packet size is 0")),
            Property::MessageExpiryInterval(value)
            | Property::SessionExpiryInterval(value)
            | Property::WillDelayInterval(value)
            | Property::MaximumPacketSize(value) => out.extend_from_slice(&value.to_be_bytes()),
            Property::SubscriptionIdentifier(0) => {
                return Err(EncodeError::Invalid("subscription identifier is 0"));
            }
            Property::SubscriptionIdentifier(value) => {
                if value as usize > MAX_REMAINING_LENGTH {
                    return Err(EncodeError::Invalid("subscription identifier is over 268435455"));
                }
                put_var_int(out, value as usize);
            }
            Property::ResponseTopic(topic) => {
                if topic.is_empty() || contains_any(topic.as_bytes(), NOT_IN_NAMES) {
                    return Err(EncodeError::Invalid("response topic is empty or has wildcards"));
                }
                put_text(out, topic)?;
            }
            Property::ContentType(text)
            | Property::AssignedClientIdentifier(text)
            | Property::AuthenticationMethod(text)
            | Property::ResponseInformation(text)
            | Property::ServerReference(text)
            | Property::ReasonString(text) => put_text(out, text)?,
            Property::CorrelationData(data) | Property::AuthenticationData(data) => put_binary(out, data)?,
            Property::UserProperty(name, value) => {
                put_text(out, name)?;
                put_text(out, value)?;
            }
        }
        Ok(())
    }
}

// === primitives of the encoder ===

/// A string: no U+0000, at most 65,535 bytes.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) -> Result<(), EncodeError> {
    if contains_any(text.as_bytes(), [0]) {
        return Err(EncodeError::Invalid("string contains U+0000"));
    }
    put_binary(out, text.as_bytes())
}

/// Two bytes of length and the data.
pub(crate) fn put_binary(out: &mut Vec<u8>, data: &[u8]) -> Result<(), EncodeError> {
    let len = u16::try_from(data.len()).map_err(|_| EncodeError::FieldTooLong(data.len()))?;
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(data);
    Ok(())
}

/// A variable byte integer; `value` is at most [`MAX_REMAINING_LENGTH`].
#[inline]
pub(crate) fn put_var_int(out: &mut Vec<u8>, mut value: usize) {
    while value > 0x7F {
        out.push((value & 0x7F) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// How many bytes [`put_var_int`] writes.
#[inline]
pub(crate) const fn var_int_len(value: usize) -> usize {
    match value {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}
