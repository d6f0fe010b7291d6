package main

import (
	"context"
	"errors"
	"net/url"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"
	"github.com/eclipse/paho.golang/paho/session"
	"github.com/eclipse/paho.golang/paho/session/state"
)

type client5 struct{ *autopaho.ConnectionManager }

// What the library knows of a session, kept for the client's return.
var sessions = map[string]session.SessionManager{}

func user(pairs [][2]string) (all paho.UserProperties) {
	for _, pair := range pairs {
		all.Add(pair[0], pair[1])
	}
	return
}

func received(message *paho.Publish) Message {
	of := message.Properties
	told := Message{
		Topic:         message.Topic,
		Payload:       string(message.Payload),
		QoS:           message.QoS,
		Retain:        message.Retain,
		ContentType:   of.ContentType,
		ResponseTopic: of.ResponseTopic,
		Correlation:   string(of.CorrelationData),
		Expiry:        of.MessageExpiry,
	}
	for _, pair := range of.User {
		told.User = append(told.User, [2]string{pair.Key, pair.Value})
	}
	if of.SubscriptionIdentifier != nil {
		told.Subscriptions = []int{*of.SubscriptionIdentifier}
	}
	return told
}

func connect5(command *Command) (Client, byte, bool, error) {
	tlsCfg, err := tlsConfig(command.CA)
	if err != nil {
		return nil, 0, false, err
	}
	to, err := url.Parse(command.URL)
	if err != nil {
		return nil, 0, false, err
	}
	if command.Clean || sessions[command.Client] == nil {
		sessions[command.Client] = state.NewInMemory()
	}
	connected, failed := make(chan *paho.Connack, 1), make(chan error, 1)
	config := autopaho.ClientConfig{
		ServerUrls:                    []*url.URL{to},
		TlsCfg:                        tlsCfg,
		KeepAlive:                     60,
		CleanStartOnInitialConnection: command.Clean,
		ConnectUsername:               command.Username,
		ConnectPassword:               []byte(command.Password),
		ReconnectBackoff: func(attempt int) time.Duration {
			return time.Duration(attempt) * time.Hour // Once, at once.
		},
		OnConnectionUp:   func(_ *autopaho.ConnectionManager, ack *paho.Connack) { connected <- ack },
		OnConnectionDown: func() bool { return false },
		OnConnectError:   func(err error) { failed <- err },
		ConnectPacketBuilder: func(packet *paho.Connect, _ *url.URL) (*paho.Connect, error) {
			if command.AliasMax > 0 {
				if packet.Properties == nil {
					packet.Properties = &paho.ConnectProperties{RequestProblemInfo: true}
				}
				packet.Properties.TopicAliasMaximum = &command.AliasMax
			}
			return packet, nil
		},
	}
	if !command.Clean && command.Expiry != nil {
		config.SessionExpiryInterval = *command.Expiry
	}
	if will := command.Will; will != nil {
		config.WillMessage = &paho.WillMessage{
			Topic: will.Topic, Payload: []byte(will.Payload), QoS: will.QoS, Retain: will.Retain,
		}
		config.WillProperties = &paho.WillProperties{User: user(will.User)}
	}
	config.ClientID, config.Session = command.Client, sessions[command.Client]
	config.OnPublishReceived = []func(paho.PublishReceived) (bool, error){
		func(message paho.PublishReceived) (bool, error) {
			heard(command.Client, received(message.Packet))
			return true, nil
		},
	}
	manager, err := autopaho.NewConnection(context.Background(), config)
	if err != nil {
		return nil, 0, false, err
	}
	select {
	case ack := <-connected:
		return client5{manager}, 0, ack.SessionPresent, nil
	case err = <-failed:
		refused := &autopaho.ConnackError{}
		if errors.As(err, &refused) {
			return nil, refused.ReasonCode, false, err
		}
		return nil, 0, false, err
	}
}

func (client client5) Subscribe(command *Command) (byte, error) {
	asked := &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: command.Filter, QoS: command.QoS}}}
	if command.Subscription != nil {
		asked.Properties = &paho.SubscribeProperties{SubscriptionIdentifier: command.Subscription}
	}
	ack, err := client.ConnectionManager.Subscribe(context.Background(), asked)
	if ack == nil {
		return 0, err
	}
	return ack.Reasons[0], err
}

func (client client5) Publish(command *Command) (byte, error) {
	ack, err := client.ConnectionManager.Publish(context.Background(), &paho.Publish{
		Topic: command.Topic, Payload: []byte(command.Payload), QoS: command.QoS, Retain: command.Retain,
		Properties: &paho.PublishProperties{
			ContentType:     command.ContentType,
			ResponseTopic:   command.ResponseTopic,
			CorrelationData: []byte(command.Correlation),
			MessageExpiry:   command.Expiry,
			TopicAlias:      command.Alias,
			User:            user(command.User),
		},
	})
	if ack == nil {
		return 0, err
	}
	return ack.ReasonCode, err
}

func (client client5) Disconnect() error {
	return client.ConnectionManager.Disconnect(context.Background())
}
