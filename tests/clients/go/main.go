// The two Go libraries of Eclipse Paho as the tests drive them, ../README.md says how: paho.mqtt.golang for MQTT 3.1
// and 3.1.1, paho.golang for 5.
package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"sync"
)

// Message is one that is published, or that came.
type Message struct {
	Topic         string      `json:"topic"`
	Payload       string      `json:"payload"`
	QoS           byte        `json:"qos"`
	Retain        bool        `json:"retain"`
	User          [][2]string `json:"user,omitempty"`
	ContentType   string      `json:"content_type,omitempty"`
	ResponseTopic string      `json:"response_topic,omitempty"`
	Correlation   string      `json:"correlation,omitempty"`
	Expiry        *uint32     `json:"expiry,omitempty"`
	Alias         *uint16     `json:"alias,omitempty"`
	Subscriptions []int       `json:"subscriptions,omitempty"`
}

// Command is a line of the input.
type Command struct {
	Message
	ID           uint64   `json:"id"`
	Do           string   `json:"do"`
	Client       string   `json:"client"`
	URL          string   `json:"url"`
	CA           string   `json:"ca"`
	Version      string   `json:"version"`
	Clean        bool     `json:"clean"`
	AliasMax     uint16   `json:"alias_max"`
	Username     string   `json:"username"`
	Password     string   `json:"password"`
	Will         *Message `json:"will"`
	Filter       string   `json:"filter"`
	Subscription *int     `json:"subscription"`
}

// Answer is what came of a command.
type Answer struct {
	ID             uint64 `json:"id"`
	Code           *byte  `json:"code,omitempty"`
	SessionPresent bool   `json:"session_present"`
	Error          string `json:"error,omitempty"`
}

// Client is either library's.
type Client interface {
	Subscribe(*Command) (byte, error)
	Publish(*Command) (byte, error)
	Disconnect() error
}

var saying sync.Mutex

func say(line any) {
	text, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	saying.Lock()
	defer saying.Unlock()
	fmt.Println(string(text))
}

func heard(client string, message Message) {
	say(map[string]any{"client": client, "message": message})
}

// tlsConfig trusts the authority in this file, and nothing is asked where there is none.
func tlsConfig(ca string) (*tls.Config, error) {
	if ca == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return &tls.Config{RootCAs: pool}, nil
}

var clients = map[string]Client{}

func run(command *Command) Answer {
	answer := Answer{ID: command.ID}
	var code byte
	var err error
	switch command.Do {
	case "connect":
		connect := connect3
		if command.Version == "5" {
			connect = connect5
		}
		var client Client
		client, code, answer.SessionPresent, err = connect(command)
		clients[command.Client] = client
	case "subscribe":
		code, err = clients[command.Client].Subscribe(command)
	case "publish":
		code, err = clients[command.Client].Publish(command)
	case "disconnect":
		err = clients[command.Client].Disconnect()
	default:
		err = fmt.Errorf("what is %s?", command.Do)
	}
	// A refusal is an error that has a code.
	if err != nil && code == 0 {
		answer.Error = err.Error()
	} else {
		answer.Code = &code
	}
	return answer
}

func main() {
	input := bufio.NewScanner(os.Stdin)
	input.Buffer(nil, 1<<20)
	for input.Scan() {
		command := Command{}
		if err := json.Unmarshal(input.Bytes(), &command); err != nil {
			panic(err)
		}
		say(run(&command))
	}
}
