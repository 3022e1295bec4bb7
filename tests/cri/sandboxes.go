package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sandboxRequest says what to do with sandboxes, all of them at once.
type sandboxRequest struct {
	// Do is run, end, list or ready.
	Do string `json:"do"`
	// Names are those of the pods to run, or the ids of the sandboxes to end.
	Names []string `json:"names"`
	// CgroupParent is the control group that holds the sandboxes' own.
	CgroupParent string `json:"cgroupParent"`
	// TimeoutSecs is how long each call may take.
	TimeoutSecs int64 `json:"timeoutSecs"`
}

// sandbox is what became of one.
type sandbox struct {
	Name string `json:"name"`
	ID   string `json:"id"`
	// Ready is whether the runtime says so.
	Ready bool     `json:"ready"`
	IPs   []string `json:"ips,omitempty"`
	// Netns is the path of its network namespace, as the runtime sees it.
	Netns string `json:"netns"`
	Error string `json:"error"`
}

func sandboxes(socket string, request sandboxRequest) ([]sandbox, error) {
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	runtime := cri.NewRuntimeServiceClient(connection)
	limit := time.Duration(request.TimeoutSecs) * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	switch request.Do {
	case "run":
		return each(request.Names, func(name string) sandbox {
			id, err := start(ctx, runtime, name, request.CgroupParent)
			if err != nil {
				return sandbox{Name: name, ID: id, Error: text(err)}
			}
			return look(ctx, runtime, name, id)
		}), nil
	case "end":
		return each(request.Names, func(id string) sandbox {
			return sandbox{ID: id, Error: text(end(ctx, runtime, id))}
		}), nil
	case "list":
		all, err := runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
		if err != nil {
			return nil, err
		}
		return each(all.GetItems(), func(item *cri.PodSandbox) sandbox {
			return look(ctx, runtime, item.GetMetadata().GetName(), item.GetId())
		}), nil
	case "ready":
		status, err := runtime.Status(ctx, &cri.StatusRequest{})
		if err != nil {
			return nil, err
		}
		for _, condition := range status.GetStatus().GetConditions() {
			if !condition.GetStatus() {
				return nil, fmt.Errorf("%s: %s", condition.GetType(), condition.GetMessage())
			}
		}
		return []sandbox{}, nil
	}
	return nil, fmt.Errorf("do: %q is none of run, end, list, ready", request.Do)
}

// start runs a sandbox as the kubelet does for a pod of this name.
func start(ctx context.Context, runtime cri.RuntimeServiceClient, name, cgroupParent string) (string, error) {
	answer, err := runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Uid: "uid-" + name, Namespace: "default"},
		Hostname:     name,
		LogDirectory: "",
		Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: cgroupParent},
	}})
	return answer.GetPodSandboxId(), err
}

// end stops and removes a sandbox as the kubelet does with a pod's.
func end(ctx context.Context, runtime cri.RuntimeServiceClient, id string) error {
	if _, err := runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	if _, err := runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	return nil
}

// look asks what the runtime knows of a sandbox.
func look(ctx context.Context, runtime cri.RuntimeServiceClient, name, id string) sandbox {
	found := sandbox{Name: name, ID: id, IPs: []string{}}
	answer, err := runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
	if err != nil {
		found.Error = text(err)
		return found
	}
	status := answer.GetStatus()
	found.Ready = status.GetState() == cri.PodSandboxState_SANDBOX_READY
	if first := status.GetNetwork().GetIp(); first != "" {
		found.IPs = append(found.IPs, first)
	}
	for _, more := range status.GetNetwork().GetAdditionalIps() {
		found.IPs = append(found.IPs, more.GetIp())
	}
	var info struct {
		RuntimeSpec struct {
			Linux struct {
				Namespaces []struct{ Type, Path string }
			}
		}
	}
	if err := json.Unmarshal([]byte(answer.GetInfo()["info"]), &info); err != nil {
		found.Error = text(fmt.Errorf("the runtime's details: %w", err))
		return found
	}
	for _, namespace := range info.RuntimeSpec.Linux.Namespaces {
		if namespace.Type == "network" {
			found.Netns = namespace.Path
		}
	}
	return found
}
