"""The operations that a SavedModel may use: those that compute, and nothing else.

A model is a program. What is not named here is refused before anything of it runs: files, sockets,
Python, datasets, summaries, printing, other machines, and whatever TensorFlow adds later.
Before one is added, see what its kernel does with each attribute and input.
"""

_COMPUTING = (
    # Constants, shapes and selections.
    """
    Assert BatchToSpace BatchToSpaceND Bincount Bitcast BroadcastArgs BroadcastGradientArgs
    BroadcastTo Bucketize Cast CheckNumerics CheckNumericsV2 Concat ConcatOffset ConcatV2
    ConjugateTranspose Const DataFormatDimMap DataFormatVecPermute DenseBincount DepthToSpace
    Diag DiagPart DynamicPartition DynamicStitch EnsureShape ExpandDims ExtractImagePatches
    ExtractVolumePatches Fill Gather GatherNd GatherV2 GuaranteeConst HistogramFixedWidth
    Identity IdentityN InvertPermutation LinSpace ListDiff LowerBound MatrixBandPart MatrixDiag
    MatrixDiagPart MatrixDiagPartV2 MatrixDiagPartV3 MatrixDiagV2 MatrixDiagV3 MatrixSetDiag
    MatrixSetDiagV2 MatrixSetDiagV3 MirrorPad MirrorPadGrad NoOp OneHot OnesLike Pack Pad PadV2
    ParallelDynamicStitch Placeholder PlaceholderV2 PlaceholderWithDefault PreventGradient
    RaggedBincount Range Rank Reshape Reverse ReverseSequence ReverseV2 Roll ScatterNd Select
    SelectV2 Shape ShapeN Size Slice Snapshot SpaceToBatch SpaceToBatchND SpaceToDepth
    SparseBincount Split SplitV Squeeze StopGradient StridedSlice StridedSliceGrad
    TensorScatterAdd TensorScatterMax TensorScatterMin TensorScatterSub TensorScatterUpdate
    TensorStridedSliceUpdate Tile Transpose Unique UniqueV2 UniqueWithCounts UniqueWithCountsV2
    Unpack UnravelIndex UpperBound Where ZerosLike
    """,
    # Arithmetic.
    """
    Abs AccumulateNV2 Acos Acosh Add AddN AddV2 All Angle Any ApproximateEqual ArgMax ArgMin
    Asin Asinh Atan Atan2 Atanh BatchMatMul BatchMatMulV2 BatchMatMulV3 BesselI0 BesselI0e
    BesselI1 BesselI1e Betainc BitwiseAnd BitwiseOr BitwiseXor Ceil ClipByValue Complex
    ComplexAbs Conj Cos Cosh Cross Cumprod Cumsum CumulativeLogsumexp Digamma Div DivNoNan
    Einsum Equal Erf Erfc Erfinv EuclideanNorm Exp Expm1 Floor FloorDiv FloorMod Greater
    GreaterEqual Igamma Igammac Imag InTopK InTopKV2 Inv InvGrad Invert IsFinite IsInf IsNan
    LeftShift Less LessEqual Lgamma Log Log1p LogicalAnd LogicalNot LogicalOr MatMul Max
    Maximum Mean Min Minimum Mod Mul MulNoNan Ndtri Neg NextAfter NotEqual NthElement Polygamma
    PopulationCount Pow Prod Real RealDiv Reciprocal ReciprocalGrad RightShift Rint Round Rsqrt
    RsqrtGrad SegmentMax SegmentMean SegmentMin SegmentProd SegmentSum Sigmoid SigmoidGrad Sign
    Sin Sinh Sqrt SqrtGrad Square SquaredDifference Sub Sum Tan Tanh TanhGrad TopK TopKV2
    TruncateDiv TruncateMod UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd
    UnsortedSegmentSum Xdivy Xlog1py Xlogy Zeta
    """,
    # Linear algebra and Fourier transforms.
    """
    BandedTriangularSolve Cholesky CholeskyGrad Eig FFT FFT2D FFT3D IFFT IFFT2D IFFT3D IRFFT
    IRFFT2D IRFFT3D LogMatrixDeterminant Lu MatrixDeterminant MatrixExponential MatrixInverse
    MatrixLogarithm MatrixSolve MatrixSolveLs MatrixSquareRoot MatrixTriangularSolve Qr RFFT
    RFFT2D RFFT3D SelfAdjointEigV2 Svd TridiagonalMatMul TridiagonalSolve
    """,
    # Layers, and their gradients, which saved models keep.
    """
    AvgPool AvgPool3D AvgPool3DGrad AvgPoolGrad BiasAdd BiasAddGrad BiasAddV1 BlockLSTM
    BlockLSTMV2 Conv2D Conv2DBackpropFilter Conv2DBackpropInput Conv3D Conv3DBackpropFilterV2
    Conv3DBackpropInputV2 CudnnRNN CudnnRNNBackprop CudnnRNNBackpropV2 CudnnRNNBackpropV3
    CudnnRNNCanonicalToParams CudnnRNNCanonicalToParamsV2 CudnnRNNParamsSize
    CudnnRNNParamsToCanonical CudnnRNNParamsToCanonicalV2 CudnnRNNV2 CudnnRNNV3
    DepthwiseConv2dNative DepthwiseConv2dNativeBackpropFilter
    DepthwiseConv2dNativeBackpropInput Dilation2D Elu EluGrad FakeQuantWithMinMaxArgs
    FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel FractionalAvgPool
    FractionalMaxPool FusedBatchNorm FusedBatchNormGrad FusedBatchNormGradV2
    FusedBatchNormGradV3 FusedBatchNormV2 FusedBatchNormV3 FusedPadConv2D
    FusedResizeAndPadConv2D GRUBlockCell L2Loss LRN LRNGrad LSTMBlockCell LeakyRelu
    LeakyReluGrad LogSoftmax MaxPool MaxPool3D MaxPool3DGrad MaxPoolGrad MaxPoolGradV2
    MaxPoolV2 MaxPoolWithArgmax QuantizeAndDequantizeV2 QuantizeAndDequantizeV3
    QuantizeAndDequantizeV4 Relu Relu6 Relu6Grad ReluGrad Selu SeluGrad Softmax
    SoftmaxCrossEntropyWithLogits Softplus SoftplusGrad Softsign SoftsignGrad
    SparseSoftmaxCrossEntropyWithLogits
    """,
    # Noise.
    """
    Multinomial NonDeterministicInts ParameterizedTruncatedNormal RandomGamma RandomGammaGrad
    RandomIndexShuffle RandomPoissonV2 RandomShuffle RandomStandardNormal RandomUniform
    RandomUniformInt RngReadAndSkip RngSkip StatefulRandomBinomial StatefulStandardNormalV2
    StatefulTruncatedNormal StatefulUniform StatefulUniformFullInt StatefulUniformInt
    StatelessMultinomial StatelessParameterizedTruncatedNormal StatelessRandomBinomial
    StatelessRandomGammaV2 StatelessRandomGammaV3 StatelessRandomGetAlg
    StatelessRandomGetKeyCounter StatelessRandomGetKeyCounterAlg StatelessRandomNormal
    StatelessRandomNormalV2 StatelessRandomPoisson StatelessRandomUniform
    StatelessRandomUniformFullInt StatelessRandomUniformFullIntV2 StatelessRandomUniformInt
    StatelessRandomUniformIntV2 StatelessRandomUniformV2 StatelessShuffle
    StatelessTruncatedNormal StatelessTruncatedNormalV2 TruncatedNormal
    """,
    # Images.
    """
    AdjustContrastv2 AdjustHue AdjustSaturation CombinedNonMaxSuppression CropAndResize
    DecodeAndCropJpeg DecodeBmp DecodeGif DecodeImage DecodeJpeg DecodePng DrawBoundingBoxes
    DrawBoundingBoxesV2 EncodeJpeg EncodePng ExtractGlimpse ExtractGlimpseV2 ExtractJpegShape
    HSVToRGB ImageProjectiveTransformV2 ImageProjectiveTransformV3 NonMaxSuppression
    NonMaxSuppressionV2 NonMaxSuppressionV3 NonMaxSuppressionV4 NonMaxSuppressionV5
    NonMaxSuppressionWithOverlaps RGBToHSV ResizeArea ResizeBicubic ResizeBilinear
    ResizeNearestNeighbor SampleDistortedBoundingBox SampleDistortedBoundingBoxV2
    ScaleAndTranslate StatelessSampleDistortedBoundingBox
    """,
    # Text, and examples as servers are sent them.
    """
    AsString DecodeBase64 DecodePaddedRaw DecodeRaw EncodeBase64 Fingerprint ParseExample
    ParseExampleV2 ParseSequenceExample ParseSequenceExampleV2 ParseSingleExample ReduceJoin
    RegexFullMatch RegexReplace StaticRegexFullMatch StaticRegexReplace StringFormat StringJoin
    StringLength StringLower StringNGrams StringSplit StringSplitV2 StringStrip
    StringToHashBucket StringToHashBucketFast StringToHashBucketStrong StringToNumber
    StringUpper Substr UnicodeDecode UnicodeDecodeWithOffsets UnicodeEncode UnicodeTranscode
    UnsortedSegmentJoin
    """,
    # Sparse and ragged tensors.
    """
    DenseCountSparseOutput RaggedCountSparseOutput RaggedCross RaggedFillEmptyRows RaggedGather
    RaggedRange RaggedTensorToSparse RaggedTensorToTensor SparseAdd SparseConcat
    SparseCountSparseOutput SparseCross SparseCrossHashed SparseCrossV2 SparseDenseCwiseAdd
    SparseDenseCwiseDiv SparseDenseCwiseMul SparseFillEmptyRows SparseMatMul SparseReduceMax
    SparseReduceSum SparseReorder SparseReshape SparseSegmentMean
    SparseSegmentMeanWithNumSegments SparseSegmentSqrtN SparseSegmentSqrtNWithNumSegments
    SparseSegmentSum SparseSegmentSumWithNumSegments SparseSlice SparseSoftmax
    SparseSparseMaximum SparseSparseMinimum SparseSplit SparseTensorDenseAdd
    SparseTensorDenseMatMul SparseToDense
    """,
    # Control flow, and lists in loops.
    """
    Case ControlTrigger DeviceIndex EmptyTensorList Enter Exit FakeParam If LoopCond Merge
    NextIteration PartitionedCall RefEnter RefExit RefIdentity RefMerge RefNextIteration
    RefSelect RefSwitch StatefulPartitionedCall StatelessCase StatelessIf StatelessWhile Switch
    TensorArrayCloseV3 TensorArrayConcatV3 TensorArrayGatherV3 TensorArrayReadV3
    TensorArrayScatterV3 TensorArraySizeV3 TensorArraySplitV3 TensorArrayV3 TensorArrayWriteV3
    TensorListConcat TensorListConcatLists TensorListConcatV2 TensorListElementShape
    TensorListFromTensor TensorListGather TensorListGetItem TensorListLength TensorListPopBack
    TensorListPushBack TensorListPushBackBatch TensorListReserve TensorListResize
    TensorListScatter TensorListScatterIntoExistingList TensorListScatterV2 TensorListSetItem
    TensorListSplit TensorListStack ToBool While
    """,
    # Variables, and tables in memory.
    """
    AnonymousHashTable AnonymousMutableDenseHashTable AnonymousMutableHashTable Assign
    AssignAdd AssignAddVariableOp AssignSub AssignSubVariableOp AssignVariableOp
    DestroyResourceOp DisableCopyOnRead HashTable HashTableV2 InitializeTable InitializeTableV2
    IsVariableInitialized LookupTableExport LookupTableExportV2 LookupTableFind
    LookupTableFindV2 LookupTableImport LookupTableImportV2 LookupTableInsert
    LookupTableInsertV2 LookupTableRemoveV2 LookupTableSize LookupTableSizeV2
    MutableDenseHashTableV2 MutableHashTableV2 ReadVariableOp ResourceGather ResourceGatherNd
    ResourceScatterAdd ResourceScatterDiv ResourceScatterMax ResourceScatterMin
    ResourceScatterMul ResourceScatterNdAdd ResourceScatterNdMax ResourceScatterNdMin
    ResourceScatterNdSub ResourceScatterNdUpdate ResourceScatterSub ResourceScatterUpdate
    ResourceStridedSliceAssign VarHandleOp VarIsInitializedOp Variable VariableShape VariableV2
    """,
)
COMPUTING = frozenset(" ".join(_COMPUTING).split())

# What opens files. Where these may stand, `admission.py` says.
SAVING = frozenset({"SaveV2", "ShardedFilename", "MergeV2Checkpoints"})
RESTORING = frozenset({"RestoreV2"})
