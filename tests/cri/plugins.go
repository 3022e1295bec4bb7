package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// pluginRequest says what to do with attachments to one network, all of them at once.
type pluginRequest struct {
	// Do is add, check, del, gc or status.
	Do string `json:"do"`
	// Conflist is the network configuration list.
	Conflist json.RawMessage `json:"conflist"`
	// Attachments are those to add, check or delete; with gc those to keep.
	Attachments []attachment `json:"attachments"`
}

type attachment struct {
	ContainerID string `json:"containerId"`
	Netns       string `json:"netns"`
	Ifname      string `json:"ifname"`
	// Args are those of CNI_ARGS.
	Args map[string]string `json:"args"`
	// Capabilities hold what the runtime has for each capability.
	Capabilities map[string]any `json:"capabilities"`
}

type pluginAnswer struct {
	// Result is that of an ADD.
	Result types.Result `json:"result"`
	// Code is that of a plugin's own error, 0 for none and for libcni's.
	Code  uint   `json:"code"`
	Error string `json:"error"`
	// Millis is how long it took.
	Millis float64 `json:"millis"`
}

func plugins(directory, cache string, request pluginRequest) ([]pluginAnswer, error) {
	list, err := libcni.NetworkConfFromBytes(request.Conflist)
	if err != nil {
		return nil, fmt.Errorf("the list: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), PLUGIN_TIMEOUT)
	defer cancel()
	cni := libcni.NewCNIConfigWithCacheDir([]string{directory}, cache, nil)
	one := func(work func() (types.Result, error)) pluginAnswer {
		began := time.Now()
		result, err := work()
		answer := pluginAnswer{Result: result, Error: text(err)}
		answer.Millis = float64(time.Since(began).Microseconds()) / 1000
		if plugin, ours := err.(*types.Error); ours {
			answer.Code = plugin.Code
		}
		return answer
	}
	switch request.Do {
	case "gc":
		keep := libcni.GCArgs{}
		for _, one := range request.Attachments {
			valid := types.GCAttachment{ContainerID: one.ContainerID, IfName: one.Ifname}
			keep.ValidAttachments = append(keep.ValidAttachments, valid)
		}
		answer := one(func() (types.Result, error) { return nil, cni.GCNetworkList(ctx, list, &keep) })
		return []pluginAnswer{answer}, nil
	case "status":
		answer := one(func() (types.Result, error) { return nil, cni.GetStatusNetworkList(ctx, list) })
		return []pluginAnswer{answer}, nil
	case "add", "check", "del":
		return each(request.Attachments, func(attachment attachment) pluginAnswer {
			conf := attachment.conf()
			return one(func() (types.Result, error) {
				switch request.Do {
				case "add":
					return cni.AddNetworkList(ctx, list, conf)
				case "check":
					return nil, cni.CheckNetworkList(ctx, list, conf)
				}
				return nil, cni.DelNetworkList(ctx, list, conf)
			})
		}), nil
	}
	return nil, fmt.Errorf("do: %q is none of add, check, del, gc, status", request.Do)
}

func (a attachment) conf() *libcni.RuntimeConf {
	conf := &libcni.RuntimeConf{
		ContainerID:    a.ContainerID,
		NetNS:          a.Netns,
		IfName:         a.Ifname,
		CapabilityArgs: a.Capabilities,
	}
	for key, value := range a.Args {
		conf.Args = append(conf.Args, [2]string{key, value})
	}
	return conf
}

const PLUGIN_TIMEOUT = time.Minute
