// Command cri is what calls a container runtime, and what calls network plugins, in the tests: the kubelet's
// side of the CRI, and libcni. It reads one request as JSON from its standard input and answers with JSON.
//
// usage: cri sandboxes SOCKET | cri plugins DIRECTORY CACHE
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	switch {
	case len(arguments) == 2 && arguments[0] == "sandboxes":
		return converse(func(request sandboxRequest) ([]sandbox, error) {
			return sandboxes(arguments[1], request)
		})
	case len(arguments) == 3 && arguments[0] == "plugins":
		return converse(func(request pluginRequest) ([]pluginAnswer, error) {
			return plugins(arguments[1], arguments[2], request)
		})
	}
	return errors.New("usage: cri sandboxes SOCKET | cri plugins DIRECTORY CACHE")
}

// converse reads a request, and prints what work makes of it.
func converse[Request, Answer any](work func(Request) (Answer, error)) error {
	var request Request
	decoder := json.NewDecoder(os.Stdin)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&request); err != nil {
		return fmt.Errorf("the request: %w", err)
	}
	answer, err := work(request)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(answer)
}

// each does the same with every item at once, and keeps the order.
func each[Item, Answer any](items []Item, work func(Item) Answer) []Answer {
	answers := make([]Answer, len(items))
	var group sync.WaitGroup
	for index, item := range items {
		group.Go(func() { answers[index] = work(item) })
	}
	group.Wait()
	return answers
}

// text is an error's, empty for none.
func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
