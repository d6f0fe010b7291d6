package main

import mqtt "github.com/eclipse/paho.mqtt.golang"

type client3 struct{ mqtt.Client }

func connect3(command *Command) (Client, byte, bool, error) {
	config, err := tlsConfig(command.CA)
	if err != nil {
		return nil, 0, false, err
	}
	options := mqtt.NewClientOptions().AddBroker(command.URL).SetClientID(command.Client)
	options.SetProtocolVersion(map[string]uint{"3.1": 3, "3.1.1": 4}[command.Version])
	options.SetCleanSession(command.Clean).SetAutoReconnect(false).SetConnectRetry(false)
	options.SetUsername(command.Username).SetPassword(command.Password)
	if config != nil {
		options.SetTLSConfig(config)
	}
	if will := command.Will; will != nil {
		options.SetWill(will.Topic, will.Payload, will.QoS, will.Retain)
	}
	options.SetDefaultPublishHandler(func(_ mqtt.Client, message mqtt.Message) {
		heard(command.Client, Message{
			Topic:   message.Topic(),
			Payload: string(message.Payload()),
			QoS:     message.Qos(),
			Retain:  message.Retained(),
		})
	})
	client := mqtt.NewClient(options)
	token := client.Connect().(*mqtt.ConnectToken)
	token.Wait()
	return client3{client}, token.ReturnCode(), token.SessionPresent(), token.Error()
}

func (client client3) Subscribe(command *Command) (byte, error) {
	token := client.Client.Subscribe(command.Filter, command.QoS, nil).(*mqtt.SubscribeToken)
	token.Wait()
	// Of `$share/GROUP/FILTER` it tells by FILTER.
	for _, code := range token.Result() {
		return code, token.Error()
	}
	return 0, token.Error()
}

func (client client3) Publish(command *Command) (byte, error) {
	token := client.Client.Publish(command.Topic, command.QoS, command.Retain, command.Payload)
	token.Wait()
	return 0, token.Error()
}

func (client client3) Disconnect() error {
	// At most so many milliseconds for what is under way.
	client.Client.Disconnect(250)
	return nil
}
