// Reads a compose file as `docker compose` does, with the library that it is made of, and prints what is meant by it as JSON. A file
// that does not fit the compose specification's schema, or names what is not there, ends it with status 1 and the reason.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	text, err := read(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(text)
}

func read(file string) (string, error) {
	options, err := cli.NewProjectOptions([]string{file})
	if err != nil {
		return "", err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return "", err
	}
	text, err := project.MarshalJSON()
	return string(text), err
}
