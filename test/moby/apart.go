package main

// apart names the tests that no daemon passes in a host like ours, with the reason. What fails of them is not counted
// as run; whatever is not listed here counts.
var apart = map[string]string{
	"container.TestAttachDisconnectLeak":                ownDaemon,
	"container.TestCDISpecDirsAreInSystemInfo":          ownDaemon,
	"container.TestContainerShmSize":                    ownDaemon,
	"container.TestContainerCopyLeaksMounts":            "it mounts the host's /var with propagation rslave, and / must be a shared mount for that",
	"image.TestAPIImagesListManifests":                  ownDaemon,
	"image.TestAPIImagesListSizeShared":                 ownDaemon,
	"image.TestAPIImageHistoryCrossPlatform":            hub,
	"image.TestImagePullNonExisting":                    hub,
	"image.TestSaveAndLoadPlatform":                     hub,
	"image.TestSearchContentType":                       hub,
	"system.TestDiskUsage":                              ownDaemon,
	"network.TestCustomIfnameCollidesWithExistingIface": ownDaemon,
	"network.TestCustomIfnameIsPreservedOnLiveRestore":  ownDaemon,
	"network.TestCustomIfnameWithMatchingDynamicPrefix": ownDaemon,
	"network.TestExtDNSInIPv6OnlyNw":                    ownDaemon,
	"network.TestForbidDuplicateNetworkNames":           ownDaemon,
	"network.TestHostGatewayFromDocker0":                ownDaemon,
	"network.TestMixL3IPVlanAndBridge":                  ownDaemon,
	// With -local.
	"container.TestPIDModeHost":                   "reads /proc/1/ns/pid of the machine, which takes CAP_SYS_PTRACE",
	"container.TestStatsNetworkStats":             "runs the machine's ping",
	"image.TestImagePullStoredDigestForOtherRepo": "starts a registry's program",

	"DockerCLIRunSuite.TestDevicePermissions":                     "it wants the host's /dev/fuse to be open to everybody, which udev does",
	"DockerCLIRunSuite.TestRunInvalidCpusetMemsFlagValue":         "it reads what is known of the daemon's own machine only, and falls over nil",
	"DockerCLIRunSuite.TestRunLookupGoogleDNS":                    hub,
	"DockerCLIRunSuite.TestRunProcWritableInPrivilegedContainers": "the kernel has no /proc/sysrq-trigger",
	"DockerCLIEventSuite.TestEventsImagePull":                     hub,
	"DockerCLIEventSuite.TestEventsPluginOps":                     hub,
	"DockerCLIInspectSuite.TestInspectPlugin":                     hub,
}

const (
	ownDaemon = "starts a dockerd of its own"
	hub       = "asks Docker Hub"
)
